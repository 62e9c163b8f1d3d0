"""Does the same rank, trained twice, differ from itself?

On each task one rank is trained with ten seeds. Five of them against the other five, seed by seed on the same
test examples, differ by chance alone, so a 95 % interval of the difference may exclude 0 in one of twenty
tasks; three against three likewise. Every task is its own, and is counted once for either size, so the
counts are of independent comparisons (the two sizes share trainings and are not independent of each other).

    python -m benchmarks.validity.repeats --out benchmarks/results/repeats.json --work /tmp/repeats
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import numpy as np

from benchmarks.validity.comparisons import Planted
from benchmarks.validity.jobs import Arrays, results
from benchmarks.validity.record import parse_arguments, proportion, write_record
from benchmarks.validity.trainings import BATCH_SIZE, RANKS, Design
from rankwise.decide.interval import crossed_interval

PLANTED_RANKS = (2, 4, 8, 16)
STEPS, RATE = 60, 0.02
GROUP_SIZES = (3, 5)  # seeds
VALIDATION, TEST = 100, 2000  # examples; validation chooses nothing here
_FIRST = 20_000  # numbers, and so seeds, that no plant has


def repeats(count: int) -> list[Planted]:
    """Every trained rank on tasks of every planted rank in turn."""
    return [
        Planted(
            number=_FIRST + number,
            rank=PLANTED_RANKS[number % len(PLANTED_RANKS)],
            validation=VALIDATION,
            test=TEST,
            design=Design(
                steps=STEPS,
                rates=(RATE,),
                seeds=2 * max(GROUP_SIZES),
                ranks=(RANKS[number // len(PLANTED_RANKS) % len(RANKS)],),
            ),
        )
        for number in range(count)
    ]


def differs(losses: np.ndarray, size: int) -> bool:
    """Whether the first `size` seeds and the next are told apart."""
    difference = crossed_interval(losses[:size].astype(float) - losses[size : 2 * size])
    assert difference.low is not None
    assert difference.high is not None
    return not difference.low <= 0 <= difference.high


def seeds_share(losses: np.ndarray) -> float:
    """How much of the variance of a mean over seeds and examples is due to seeds."""
    differences = losses[::2].astype(float) - losses[1::2]
    from_seeds = differences.mean(axis=1).var(ddof=1) / differences.shape[0]
    from_examples = differences.mean(axis=0).var(ddof=1) / differences.shape[1]
    return float(from_seeds / (from_seeds + from_examples))


def summary(arrays: Sequence[Arrays]) -> dict[str, object]:
    losses = [stored["losses"][0] for stored in arrays]
    told_apart = {
        f"{size} seeds": proportion(sum(differs(one, size) for one in losses), len(losses)) for size in GROUP_SIZES
    }
    gains = [float(stored["baseline"].mean() - stored["losses"].mean()) for stored in arrays]
    return {
        "told_apart": told_apart,
        "mean_gain_over_rank_0_nats": round(fmean(gains), 3),
        "median_share_of_variance_from_seeds": round(median(map(seeds_share, losses)), 3),
    }


def main() -> None:
    arguments = parse_arguments(__doc__, comparisons=200)
    arrays = results(repeats(arguments.comparisons), arguments.work, arguments.workers)
    settings = {
        "tasks": arguments.comparisons,
        "planted_ranks": PLANTED_RANKS,
        "ranks": RANKS,
        "learning_rate": RATE,
        "steps": STEPS,
        "batch_size": BATCH_SIZE,
        "test_examples": TEST,
        "confidence": 0.95,
        "training_seconds": round(sum(float(stored["seconds"]) for stored in arrays)),
    }
    write_record(arguments.out, __spec__.name, settings, summary(arrays))


if __name__ == "__main__":
    main()
