"""Optuna around transformers' Trainer and PEFT: rank and learning rate by successive halving; one study a repeat.

A study lies in a data base of its own, so one that was cut off goes on with its next training.
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.trial import TrialState
from transformers import TrainerCallback

from benchmarks.speed.user import Habit, User
from rankwise.compare.config import ComparisonConfig

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class _Report(TrainerCallback):
    """Tells the study each validation loss; it may end the training there."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **others: Any) -> None:
        self.trial.report(metrics["eval_loss"], state.global_step)
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise optuna.TrialPruned


def search(config: ComparisonConfig, habit: Habit, work: Path, repeat: int, trainings: int) -> dict[str, object]:
    """The study's pick by the loss on validation, after so many trainings, and the seconds that they took.

    The ranks are the grid's, learning rates lie anywhere between the grid's lowest and highest. A study has one seed,
    its number, for its sampler and all of its trainings.
    """
    assert config.steps is not None
    work.mkdir(parents=True, exist_ok=True)
    every = math.ceil(config.steps / config.evaluations)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{work / f'study-{repeat}.db'}",
        study_name="rank",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=repeat),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=every, reduction_factor=2),
    )
    left = trainings - len(study.get_trials(states=_ENDED))
    user = User(config, habit) if left > 0 else None

    def objective(trial: optuna.Trial) -> float:
        assert user is not None
        assert config.steps is not None
        rank = trial.suggest_categorical("rank", list(config.ranks))
        rates = min(config.learning_rates), max(config.learning_rates)
        ours = config.trial(rank, trial.suggest_float("learning_rate", *rates, log=True), repeat)
        with TemporaryDirectory() as directory:
            more = {"eval_strategy": "steps", "eval_steps": every}
            report = _Report(trial)
            trainer = user.trainer(user.model(ours), ours, Path(directory), config.steps, report, **more)
            trainer.train()
            trainer.remove_callback(report)  # the end is no rung
            return float(trainer.evaluate()["eval_loss"])

    study.optimize(objective, n_trials=max(0, left))
    ended = study.get_trials(states=_ENDED)
    took = [trial.duration.total_seconds() for trial in ended if trial.duration is not None]
    best = study.best_trial
    return {
        "seconds": round(sum(took), 1),
        "trainings": len(ended),
        "of them ended early": sum(trial.state == TrialState.PRUNED for trial in ended),
        "rank": best.params["rank"],
        "learning rate": best.params["learning_rate"],
        "validation NLL": best.value,
    }
