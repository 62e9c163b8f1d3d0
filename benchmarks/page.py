"""How large the page of a large comparison is, and how long `rankwise report` takes for it.

python -m benchmarks.page

The run is made up: 12 ranks, 3 learning rates, 5 seeds, 2,000 steps, a curve on disk for each of the 180 trials.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path

from rankwise.compare.config import ComparisonConfig
from rankwise.compare.directory import RunDirectory, write_json
from rankwise.compare.journal import Journal
from rankwise.records import (
    Baseline,
    Evaluation,
    RankComparison,
    RankExperiment,
    Recommendation,
    Trial,
    TrialResult,
)

RANKS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)
RATES = (1e-4, 3e-4, 1e-3)
SEEDS, STEPS, EVALUATIONS = 5, 2000, 20


def loss(trial: Trial, step: int) -> float:
    return 0.5 - 0.02 * math.log2(trial.rank) + 0.5 * math.exp(-step / 300) + 0.01 * trial.seed


def write_run(path: Path) -> None:
    directory = RunDirectory(path)
    path.mkdir()
    config = ComparisonConfig(task="docmatch", ranks=RANKS, learning_rates=RATES, seeds=SEEDS, steps=STEPS)
    write_json(path / "comparison.json", {"config": config.to_dict(), "model": {}, "base_bytes": 90_000_000})
    trials = [config.trial(rank, rate, seed) for rank, rate, seed in product(RANKS, RATES, range(SEEDS))]
    every = STEPS // EVALUATIONS
    for trial in trials:
        curve = tuple(loss(trial, step) for step in range(STEPS))
        evaluations = tuple(Evaluation(step, curve[step - 1], 0.8) for step in range(every, STEPS + 1, every))
        directory.write_result(TrialResult(trial, "trained", curve, evaluations))
    journal = Journal(path / "journal.jsonl")
    pack = {"pack": "pack0000", "trials": [asdict(trial) for trial in trials]}
    journal.append("plan", start=0, stop=STEPS, packs=[pack])
    journal.append("trained", pack="pack0000", status={trial.id: "trained" for trial in trials}, seconds=1.0)
    write_json(path / "experiments.json", comparison(path).to_dict())


def comparison(path: Path) -> RankComparison:
    rows = [
        RankExperiment(
            rank=rank,
            alpha=float(rank),
            use_rslora=False,
            learning_rate=RATES[1],
            trainable_params=100_000 * rank,
            accuracy=0.8,
            accuracy_low=0.78,
            accuracy_high=0.82,
            nll=(at := loss(Trial(rank, float(rank), False, RATES[1], 2), STEPS)),
            macro_f1=0.8,
            mcc=0.6,
            training_time_seconds=100.0 + rank,
            peak_memory_bytes=300_000_000 + 1_600_000 * rank,
            seeds=SEEDS,
            verdict="sufficient",
            difference=at - 0.34,
            difference_low=at - 0.36,
            difference_high=at - 0.32,
            simultaneous_low=at - 0.02,
            simultaneous_high=at + 0.02,
        )
        for rank in RANKS
    ]
    answer = Recommendation(
        status="resolved",
        rank=16,
        alpha=16.0,
        use_rslora=False,
        learning_rate=RATES[1],
        target_modules="all-linear",
        margin=0.02,
        keep=0.95,
        metric="nll",
        reason="made up",
        needed=None,
        guards=(),
        doubling=None,
        growing=False,
        holds_for="2,000 steps",
        unknown=(),
        stopped=None,
    )
    return RankComparison(
        run=path,
        model="embedded",
        task="docmatch",
        accuracy_of="examples",
        experiments=tuple(rows),
        baseline=Baseline(0.7, 0.6),
        recommendation=answer,
        alternatives=(),
        wall_seconds=1.0,
        adapter=path / "adapter",
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        write_run(run)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rankwise", "report", str(run)], check=True)
        seconds = time.perf_counter() - started
        print(f"{seconds:.1f} s, {(run / 'report.html').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
