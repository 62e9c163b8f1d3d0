"""The speed benchmark's contestants train the same thing: what takes less time must not be less work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.speed.contestants import quiet
from benchmarks.speed.grid import best_rate, train_one, trials_of
from benchmarks.speed.limit import Moved
from benchmarks.speed.measure import must_do
from benchmarks.speed.user import User, losses_of
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.prepare import Prepared, prepare
from rankwise.tasks.task import collate
from rankwise.train.loop import run_pack

CONFIG = ComparisonConfig(
    model="embedded",
    task="docmatch",
    ranks=(2, 4),
    alpha=16.0,
    learning_rates=(1e-3, 5e-3),
    seeds=1,
    steps=30,
    batch_size=8,
    max_length=16,
    max_train_examples=8,
    max_validation_examples=8,
    max_test_examples=8,
    evaluations=1,
    dtype="float32",
    device="cpu",
)
TRIAL = CONFIG.trial(4, 1e-3, 0)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(CONFIG, quiet)


@pytest.mark.parametrize("habit", ["as is", "tuned"])
def test_a_user_of_the_trainer_trains_on_the_same_examples(
    prepared: Prepared, habit: Literal["as is", "tuned"]
) -> None:
    user = User(CONFIG, habit)
    ours = collate(prepared.task.train, np.arange(8), prepared.task.pad_token_id)
    theirs = user.collator([dict(row) for row in user.train])
    length = ours.input_ids.shape[1]
    for name, mine in {**ours.inputs, "labels": ours.labels}.items():
        assert theirs[name].reshape(8, -1)[:, :length].equal(mine.reshape(8, -1)), name
    assert theirs["attention_mask"].sum() == ours.attention_mask.sum()
    trained = sum(parameter.numel() for parameter in user.model(TRIAL).parameters() if parameter.requires_grad)
    assert trained == prepared.params(TRIAL.rank).total


def test_the_trainer_and_a_pack_learn_the_same_few_examples_by_heart(prepared: Prepared, tmp_path: Path) -> None:
    (ours,) = run_pack(prepared.base, prepared.task, [TRIAL], prepared.targets, prepared.settings)
    assert ours.result.train_nll[0] > 0.5
    assert ours.result.train_nll[-1] < 0.3
    user = User(CONFIG, "as is")
    trainer = user.trainer(user.model(TRIAL), TRIAL, tmp_path, 30)
    trainer.train()
    nll, correct = losses_of(trainer.predict(user.train).predictions, user.task.train.labels)
    assert nll.mean() < 0.3
    assert correct.mean() == 1


@pytest.mark.parametrize("habit", ["as is", "tuned"])
def test_a_training_of_the_grid_leaves_a_score_of_each_test_example_in_its_place(
    habit: Literal["as is", "tuned"],
) -> None:
    """Who groups rows by length gets predictions in another order. Tested are the few that were learned by heart."""
    user = User(CONFIG, habit)
    object.__setattr__(user, "test", user.train)
    object.__setattr__(user, "task", replace(user.task, test=user.task.train))
    result = train_one(user, TRIAL)
    assert result["correct"] == [1.0] * 8
    assert len(result["nll"]) == 8  # type: ignore[arg-type]


def test_each_rank_of_the_grid_has_the_rate_with_the_lowest_validation_loss() -> None:
    results = {trial: {"validation_nll": abs(trial.learning_rate - 4e-3 / trial.rank)} for trial in trials_of(CONFIG)}
    assert [best_rate(CONFIG, results, rank) for rank in CONFIG.ranks] == [1e-3, 1e-3]
    assert best_rate(CONFIG, {trial: {"validation_nll": -trial.learning_rate} for trial in results}, 2) == 5e-3


def test_the_products_that_must_be_done_are_two_passes_over_frozen_weights_and_three_over_adapters(
    prepared: Prepared,
) -> None:
    tokens, expected = prepared.task.train.input_ids.lengths.mean(), 0.0
    for target in prepared.targets:
        last = target.name.startswith("bert.encoder.layer.5") and not target.name.endswith(("key", "value"))
        seen = 1 if last or target.name.startswith("bert.pooler") else tokens  # these see the token that is read
        first = target.name.startswith("bert.encoder.layer.0.attention.self")
        expected += seen * target.weights * (2 if first else 4)
        expected += seen * 4 * (target.d_in * (2 if first else 3) + target.d_out * 3) * 2
    assert must_do(prepared, rank=4) == pytest.approx(expected, rel=0.01)


ONE, OTHER, TABLE, ROWS = torch.ones(100), torch.ones(100), torch.ones(1000, 8), torch.arange(5)


@pytest.mark.parametrize(
    ("floats", "operation"),
    [
        (300, lambda: ONE + OTHER),
        (300, lambda: ONE.add_(OTHER)),
        (200, ONE.clone),
        (150, ONE.bfloat16),
        (80, lambda: torch.nn.functional.embedding(ROWS, TABLE)),
        (0, lambda: ONE.view(10, 10).t()[3:]),
        (0, lambda: torch.empty_like(ONE)),
    ],
)
def test_what_is_moved_is_what_operations_read_and_write(floats: int, operation: Callable[[], Tensor]) -> None:
    """Views are free, and of a table only the rows count that are looked up."""
    with Moved() as moved:
        operation()
    assert moved.bytes == 4 * floats
