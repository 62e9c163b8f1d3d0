"""Comparisons made by hand: a plain one, and one with everything that a comparison may have."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from rankwise.records import (
    Baseline,
    Doubling,
    Evaluation,
    FullFineTuning,
    Guard,
    Needed,
    RankComparison,
    RankExperiment,
    Recommendation,
    Trial,
    TrialResult,
    TrialStatus,
)


def experiment(rank: int, accuracy: float) -> RankExperiment:
    return RankExperiment(
        rank=rank,
        alpha=2.0 * rank,
        use_rslora=False,
        learning_rate=3e-4,
        trainable_params=573_440 * rank + 770,
        accuracy=accuracy,
        accuracy_low=accuracy - 0.0123,
        accuracy_high=min(1.0, accuracy + 0.0123),
        nll=1.2 - accuracy,
        macro_f1=accuracy,
        mcc=2 * accuracy - 1,
        training_time_seconds=966.7,
        peak_memory_bytes=22_552_772_608,
        seeds=5,
        verdict="sufficient",
        difference=-0.0012,
        difference_low=-0.0034,
        difference_high=0.0056,
    )


COMPARISON = RankComparison(
    run=Path("runs/docmatch"),
    model="embedded",
    task="docmatch",
    experiments=(experiment(4, 0.7564), experiment(16, 0.8421), experiment(256, 0.9999)),
    accuracy_of="examples",
    baseline=Baseline(accuracy=0.7123, nll=0.58),
    recommendation=Recommendation(
        status="resolved",
        rank=4,
        alpha=8.0,
        use_rslora=False,
        learning_rate=3e-4,
        target_modules="all-linear",
        margin=0.01,
        keep=0.95,
        metric="nll",
        reason="r=4 loses at most 0.0034 nats to r=256, 95 % sure; no smaller rank was tried",
        needed=None,
        guards=(),
        doubling=None,
        growing=False,
        holds_for="200 steps of 8 of the 2,000 training examples",
        stopped=None,
        unknown=("ranks below 4",),
    ),
    alternatives=(),
    wall_seconds=99.0,
    adapter=Path("runs/docmatch/adapter"),
    notes=("3 examples were cut to 256 tokens, the longest that this model takes, and lost their ends", "another"),
)

RICH = dataclasses.replace(
    COMPARISON,
    experiments=(
        experiment(4, 0.7564),
        dataclasses.replace(experiment(16, 0.8421), nll=math.inf, accuracy_low=None, accuracy_high=None),
        dataclasses.replace(experiment(64, 0.8534), macro_f1=None, mcc=None, forgetting=0.1, retained_nll=2.5),
    ),
    recommendation=dataclasses.replace(
        COMPARISON.recommendation,
        status="unresolved",
        target_modules=("query", "value"),
        needed=Needed(1200, 4, None, 9),
        guards=(Guard("macro_f1", -0.01, -0.02, None, True),),
        doubling=Doubling(10_000, -1.5, None),
    ),
    alternatives=(dataclasses.replace(COMPARISON.recommendation, use_rslora=True, rank=None),),
    full=FullFineTuning(1e-5, 22_000_000, 0.86, 0.85, 0.87, 0.3, 100.0, None, 3, 2.6, 0.2, None, None),
    over=(
        dataclasses.replace(
            COMPARISON, run=Path("runs/docmatch/bases/nf4"), base="nf4", adapter=Path("runs/docmatch/bases/nf4/adapter")
        ),
    ),
)


def trials_of(
    comparison: RankComparison, *, seeds: int = 3, steps: int = 40, rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
) -> list[TrialResult]:
    """Trials such as the comparison may have had: the middle rate is best, the largest diverged at the largest rank."""
    results = []
    for row in comparison.experiments:
        for rate in rates:
            for seed in range(seeds):
                trial = Trial(row.rank, row.alpha, row.use_rslora, rate, seed)
                floor = 0.4 - 0.02 * math.log2(row.rank) + 0.1 * abs(math.log(rate / 3e-4))
                curve = [floor + 0.6 * math.exp(-4 * step / steps) + 0.01 * seed for step in range(steps)]
                status: TrialStatus = "trained" if rate == row.learning_rate else "dropped"
                if rate == rates[-1] and row is comparison.experiments[-1]:
                    status, curve[-1] = "diverged", math.nan
                at = range(steps // 4, steps + 1, steps // 4) if status == "trained" else (steps // 2,)
                evaluations = tuple(Evaluation(step, curve[step - 1] + 0.05, 0.7) for step in at)
                results.append(TrialResult(trial, status, tuple(curve), evaluations))
    return results
