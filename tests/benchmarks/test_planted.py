"""The validity benchmark in small: real trainings whose sufficient rank is known by construction."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.validity.comparisons import Coin, Planted, decided
from benchmarks.validity.null import claims_rank, coins, itself
from benchmarks.validity.planted import outcome, plants
from benchmarks.validity.plants import TARGETS, Sizes, frozen_transformer, headless, planted_task, targets_of
from benchmarks.validity.record import proportion
from benchmarks.validity.trainings import untrained_losses

STEPS = 60


@pytest.mark.parametrize(
    "plant",
    # The smallest and the largest; those between are more of the same.
    [
        pytest.param(plant, marks=() if plant.rank in (2, 16) else pytest.mark.slow, id=f"rank {plant.rank}")
        for plant in plants(4, budgets=[STEPS])
    ],
)
def test_no_rank_below_the_planted_one_is_called_sufficient(plant: Planted) -> None:
    decided = outcome(plant, plant.run())
    assert not decided.too_small
    assert decided.decision.rank is not None, "there is much to learn"
    assert decided.kept[0] < 0.9


@pytest.mark.parametrize("nothing", [*coins(1), *itself(1)], ids=["coin", "itself"])
def test_no_larger_rank_is_claimed_where_there_is_nothing_to_learn(nothing: Coin | Planted) -> None:
    short = dataclasses.replace(nothing, design=dataclasses.replace(nothing.design, steps=STEPS))
    assert not claims_rank(decided(short.run()))


def test_a_plant_leaves_the_frozen_model_as_it_was_and_hides_something_in_the_labels() -> None:
    base, untouched = (headless(frozen_transformer(seed=5)) for _ in range(2))
    task = planted_task(base, rank=4, sizes=Sizes(train=64, validation=64, test=512), seed=5)
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, untouched.model.get_parameter(name))
    # Chance is log(64) = 4.2; the frozen model is as sure of its own labels as the teacher is of others.
    own = planted_task(base, rank=0, sizes=Sizes(train=64, validation=64, test=512), seed=5)
    targets = targets_of(base)
    assert len(targets) == len(TARGETS)
    assert untrained_losses(base, own, targets).mean() < 2
    assert untrained_losses(base, task, targets).mean() > 3


def test_a_plant_is_the_same_every_time() -> None:
    tasks = [planted_task(frozen_transformer(seed=5), 4, Sizes(64, 16, 16), seed=5) for _ in range(2)]
    assert tasks[0].train.fingerprint() == tasks[1].train.fingerprint()
    assert len(np.unique(tasks[0].train.labels)) > 10


def test_exact_bounds_are_clopper_and_pearsons() -> None:
    # "Rule of three": none of n says below 1 - 0.025^(1/n) with 97.5 % confidence.
    bounds = proportion(0, 150)
    assert bounds["high"] == pytest.approx(1 - 0.025 ** (1 / 150), abs=1e-4)
    assert proportion(150, 150)["low"] == pytest.approx(0.025 ** (1 / 150), abs=1e-4)
