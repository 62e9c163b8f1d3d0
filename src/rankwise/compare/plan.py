"""Which trials are trained together, and how many. Pure: no clock, no device, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rankwise.compare.schedule import Leg
from rankwise.records import Trial

# In a pack. On a GPU 16 trials take 1.6 times as long as 8, on a CPU twice (docs/performance.md).
MOST_TRIALS_ON_CUDA, MOST_TRIALS = 16, 8
_MEMORY_SHARE = 0.8  # of what is free; the rest is for what a measured step did not show


@dataclass(frozen=True)
class PlannedPack:
    """Trials that are trained together from step `start` to step `stop`."""

    id: str
    trials: tuple[Trial, ...]
    start: int
    stop: int


def plan_packs(leg: Leg, size: int, first: int) -> list[PlannedPack]:
    """The packs of a leg, of at most `size` trials; `first` is the number of the first one.

    A trial's last bits depend on its pack, so what this returns is kept, and a run that goes on trains these packs.
    """
    groups = enumerate(divide(leg.trials, size), start=first)
    return [PlannedPack(f"pack{number:04d}", trials, leg.start, leg.stop) for number, trials in groups]


def divide(trials: Sequence[Trial], size: int) -> list[tuple[Trial, ...]]:
    """Groups of at most `size` trials, as even as possible: 9 trials in groups of 8 are 5 and 4.

    Trials of like ranks, of whatever seed, need the fewest products and the least padding. The largest come first: they
    take the longest, and the most memory.
    """
    ordered = sorted(trials, key=lambda trial: -trial.rank)
    count = -(-len(ordered) // size)
    bounds = [round(len(ordered) * part / count) for part in range(count + 1)] if count else []
    return [tuple(ordered[start:stop]) for start, stop in pairwise(bounds)]


def usable_bytes(free_bytes: int) -> int:
    """What trials may take of memory that is free."""
    return int(free_bytes * _MEMORY_SHARE)


def trials_that_fit(*, free_bytes: int, trial_bytes: int) -> int:
    """How many trials a pack may have, of which each takes so much beside the base model, which is in memory already.

    >>> trials_that_fit(free_bytes=10_000, trial_bytes=2_000)
    4
    """
    return max(1, usable_bytes(free_bytes) // max(1, trial_bytes))
