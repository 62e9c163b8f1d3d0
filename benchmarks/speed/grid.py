"""A grid of ranks, learning rates and seeds as a loop over transformers' Trainer and PEFT; one result a training.

What a training took and left lies in a file of its own, so a grid that was cut off goes on with the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.speed.user import Habit, User, losses_of
from rankwise.base.load import load_base
from rankwise.compare.config import ComparisonConfig
from rankwise.decide.verdict import Decision, Margin, decide
from rankwise.durable import write_file
from rankwise.records import Trial
from rankwise.train.baseline import fit_baseline

TIMES = ("training", "validation", "test")


def trials_of(config: ComparisonConfig) -> list[Trial]:
    return [config.trial(*one) for one in product(config.ranks, config.learning_rates, config.seed_numbers)]


def train_grid(config: ComparisonConfig, habit: Habit, work: Path) -> None:
    """Train, and score validation and test, whatever has no result in `work` yet."""
    missing = [trial for trial in trials_of(config) if not _file(work, trial).exists()]
    if not missing:
        return
    work.mkdir(parents=True, exist_ok=True)
    user = User(config, habit)
    for number, trial in enumerate(missing, start=1):
        result = train_one(user, trial)
        write_file(_file(work, trial), lambda path, result=result: path.write_text(json.dumps(result)))
        print(f"Trainer grid: {number} of {len(missing)}, {trial.id}: {result['seconds']}", flush=True)


def train_one(user: User, trial: Trial) -> dict[str, object]:
    """Seconds of loading and training, of scoring validation and of scoring test; and the scores."""
    assert user.config.steps is not None
    marks = [time.perf_counter()]
    with TemporaryDirectory() as directory:
        trainer = user.trainer(user.model(trial), trial, Path(directory), user.config.steps)
        trainer.train()
        marks.append(time.perf_counter())
        validation = trainer.evaluate()["eval_loss"]
        marks.append(time.perf_counter())
        # What groups rows by length while it trains hands out predictions in another order than it was given.
        trainer.args.train_sampling_strategy = "random"
        logits = np.asarray(trainer.predict(user.test).predictions)
        marks.append(time.perf_counter())
    nll, correct = losses_of(logits, user.task.test.labels)
    return {
        "seconds": dict(zip(TIMES, np.diff(marks).round(2).tolist(), strict=True)),
        "validation_nll": validation,
        "nll": nll.tolist(),
        "correct": correct.tolist(),
    }


def grid_findings(config: ComparisonConfig, habit: Habit, work: Path) -> dict[str, object]:
    """What the grid took, and what this project's rule says of its scores.

    Test is scored, and counted, for each rank's best learning rate alone. Rank 0, for the rule, is this project's.
    """
    results = {trial: json.loads(_file(work, trial).read_text()) for trial in trials_of(config)}
    rates = {rank: best_rate(config, results, rank) for rank in config.ranks}
    chosen = [[config.trial(rank, rate, seed) for seed in config.seed_numbers] for rank, rate in rates.items()]
    took = {name: sum(result["seconds"][name] for result in results.values()) for name in TIMES}
    took["test"] = sum(results[trial]["seconds"]["test"] for trials in chosen for trial in trials)
    correct = np.array([[results[trial]["correct"] for trial in trials] for trials in chosen])
    decision = judge(config, habit, correct)
    return {
        "seconds": round(sum(took.values()), 1),
        "seconds, by part": {name: round(of, 1) for name, of in took.items()},
        "trainings": len(results),
        "seconds of each training": [result["seconds"]["training"] for result in results.values()],
        "status": decision.status,
        "rank": decision.rank,
        "verdicts": {one.rank: one.verdict for one in decision.verdicts},
        "learning rates": rates,
        "accuracy": dict(zip(config.ranks, correct.mean(axis=(1, 2)).round(4).tolist(), strict=True)),
    }


def best_rate(config: ComparisonConfig, results: Mapping[Trial, Mapping[str, float]], rank: int) -> float:
    """The one with the lowest mean loss on validation."""

    def losses(rate: float) -> Iterable[float]:
        return (results[config.trial(rank, rate, seed)]["validation_nll"] for seed in config.seed_numbers)

    return min(config.learning_rates, key=lambda rate: fmean(losses(rate)))


def judge(config: ComparisonConfig, habit: Habit, correct: np.ndarray) -> Decision:
    """This project's rule on accuracy; whether leads still grow is unknown, as validation is scored once."""
    task = User(config, habit).task
    base = load_base(config.model, num_labels=len(task.labels), device="cpu")
    baseline = fit_baseline(base, task, config.first_seed).test.correct[0]
    margin = Margin(config.keep, config.margin)
    return decide(1 - correct, 1 - baseline, ranks=config.ranks, margin=margin, groups=task.test.groups)


def _file(work: Path, trial: Trial) -> Path:
    return work / f"{trial.id}.json"
