"""The events of a small comparison: two ranks, two seeds, a rate that is dropped at step 50."""

from __future__ import annotations

from rankwise.compare.observer import Planned
from rankwise.compare.schedule import Leg
from rankwise.records import Evaluation, Trial
from rankwise.train.loop import StepReport


def trial(rank: int, seed: int, rate: float = 1e-3, *, rslora: bool = False) -> Trial:
    return Trial(rank, float(rank), rslora, rate, seed)


TRIALS = tuple(trial(rank, seed) for seed in (0, 1) for rank in (4, 16))
DROPPED = tuple(trial(16, seed, rate) for seed in (0, 1) for rate in (3e-3, 1e-4))


def planned(trials: tuple[Trial, ...], start: int, stop: int, dropped: tuple[Trial, ...] = ()) -> Planned:
    return Planned(Leg(trials, start, stop), steps=200, examples_per_step=32, dropped=dropped)


SECOND_LEG = planned(TRIALS, 50, 100, DROPPED)
FIRST_PACK = StepReport(TRIALS[:2], 100, (0.5, 0.4), (Evaluation(100, 0.6, 0.7), Evaluation(100, 0.5, 0.8)))
SECOND_PACK = StepReport(TRIALS[2:], 75, (0.3, 0.2), None)
