"""From a task to per-example test losses of every rank, as a comparison gets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import numpy as np

from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.lora.attach import attached
from rankwise.records import Trial
from rankwise.tasks.task import Task
from rankwise.train.loop import TrainedTrial, run_pack, score
from rankwise.train.settings import TrainingSettings

RANKS = (1, 2, 4, 8, 16, 32)
BATCH_SIZE = 64
EVALUATIONS = 4


@dataclass(frozen=True)
class Design:
    """How the trials of one comparison are trained."""

    steps: int
    rates: tuple[float, ...]
    seeds: int
    ranks: tuple[int, ...] = RANKS

    @property
    def settings(self) -> TrainingSettings:
        return TrainingSettings(steps=self.steps, batch_size=BATCH_SIZE, evaluations=EVALUATIONS)

    @property
    def examples(self) -> int:
        """As many as training can use without seeing one twice: a student that can learn by heart tells nothing."""
        return self.steps * BATCH_SIZE


def train_ranks(
    base: BaseModel, task: Task, targets: Sequence[LinearLayer], design: Design, first_seed: int
) -> dict[str, np.ndarray]:
    """`losses` on test (ranks, seeds, examples), `validation` losses on the way (ranks, seeds, evaluations), `rates`.

    Each rank's rate (ranks) is chosen by the product's rule: the lowest mean validation loss over all seeds.
    """
    seeds = range(first_seed, first_seed + design.seeds)
    trained: dict[Trial, TrainedTrial] = {}
    for seed in seeds:
        trials = [_trial(rank, rate, seed) for rank in design.ranks for rate in design.rates]
        pack = run_pack(base, task, trials, targets, design.settings)
        trained |= {adapter.result.trial: adapter for adapter in pack}

    def validation_nll(rank: int, rate: float) -> float:
        return fmean(trained[_trial(rank, rate, seed)].result.validation_nll for seed in seeds)

    rates = [min(design.rates, key=partial(validation_nll, rank)) for rank in design.ranks]
    losses, validation = [], []
    for seed in seeds:
        chosen = [trained[_trial(rank, rate, seed)] for rank, rate in zip(design.ranks, rates, strict=True)]
        losses.append(test_losses(base, task, targets, chosen))
        validation.append([[evaluation.nll for evaluation in adapter.result.evaluations] for adapter in chosen])
    return {
        "losses": np.stack(losses, axis=1),
        "validation": np.array(validation).swapaxes(0, 1),
        "rates": np.array(rates),
    }


def test_losses(
    base: BaseModel, task: Task, targets: Sequence[LinearLayer], adapters: Sequence[TrainedTrial]
) -> np.ndarray:
    """(adapters, examples); the adapters are of one seed, ordered by rank."""
    with attached(base, [adapter.result.trial for adapter in adapters], targets) as pack:
        for index, adapter in enumerate(adapters):
            pack.load(index, adapter.state)
        return score(base, len(adapters), task, task.test).nll


def untrained_losses(base: BaseModel, task: Task, targets: Sequence[LinearLayer]) -> np.ndarray:
    """(examples): rank 0 where the head is frozen, which is an adapter that was not trained yet."""
    with attached(base, [_trial(1, 0.0, seed=0)], targets):
        return score(base, 1, task, task.test).nll[0]


def _trial(rank: int, rate: float, seed: int) -> Trial:
    return Trial(rank, float(rank), False, rate, seed)
