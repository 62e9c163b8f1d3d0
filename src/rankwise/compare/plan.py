"""Which trials there are and which are trained together. Pure: no clock, no device, no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rankwise.compare.config import ComparisonConfig
from rankwise.records import Trial

MOST_TRIALS = 8  # in a pack: more saves no time, and a kill then loses more of it
_MEMORY_SHARE = 0.8  # of what is free; the rest is for what a measured step did not show


@dataclass(frozen=True)
class PlannedPack:
    """Trials of one seed that are trained together."""

    id: str
    trials: tuple[Trial, ...]


def grid(config: ComparisonConfig) -> list[Trial]:
    """Every rank with every learning rate and seed; a seed's trials are neighbours, equal ranks too."""
    return [
        config.trial(rank, rate, seed)
        for seed in config.seed_numbers
        for rank in config.ranks
        for rate in config.learning_rates
    ]


def plan_packs(trials: Iterable[Trial], planned: Sequence[PlannedPack], size: int) -> list[PlannedPack]:
    """Packs of at most `size` trials for those that no planned pack has; what is planned stays as it is.

    A trial's last bits depend on its pack, so a run that goes on must train the packs it began with.
    """
    placed = {trial for pack in planned for trial in pack.trials}
    by_seed: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial not in placed:
            by_seed.setdefault(trial.seed, []).append(trial)
    packs = list(planned)
    number = 1 + max((int(pack.id.removeprefix("pack")) for pack in planned), default=-1)
    for members in by_seed.values():
        # As even as possible: 9 trials in packs of 8 are 5 and 4.
        count = -(-len(members) // size)
        bounds = [round(len(members) * part / count) for part in range(count + 1)]
        for start, stop in pairwise(bounds):
            packs.append(PlannedPack(f"pack{number:04d}", tuple(members[start:stop])))
            number += 1
    return packs


def trials_that_fit(*, free_bytes: int, base_bytes: int, peak_bytes: int | None) -> int:
    """How many trials a pack may have, from the measured peak of one trial's step (base model included).

    1 where no peak could be measured. The base model is in memory already, so it takes nothing of what is free.

    >>> trials_that_fit(free_bytes=10_000, base_bytes=3_000, peak_bytes=5_000)
    4
    """
    if peak_bytes is None:
        return 1
    per_trial = max(1, peak_bytes - base_bytes)
    return min(MOST_TRIALS, max(1, int(free_bytes * _MEMORY_SHARE) // per_trial))
