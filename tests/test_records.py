from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.records import RankComparison, Trial
from tests.report.samples import RICH

trials = st.builds(
    Trial,
    rank=st.integers(1, 1024),
    alpha=st.floats(1e-3, 1e4),
    use_rslora=st.booleans(),
    learning_rate=st.floats(1e-9, 1.0),
    seed=st.integers(0, 10**6),
)


@given(trials, trials)
def test_two_trials_never_share_a_name_and_a_name_is_a_file_name(one: Trial, other: Trial) -> None:
    assert (one.id == other.id) == (one == other)
    assert re.fullmatch(r"[a-z0-9.+-]+", one.id)


def test_learning_rates_that_look_alike_have_names_of_their_own() -> None:
    trial = Trial(8, 16.0, False, 1e-3, 0)
    assert trial.id == "r8-a16-lr0.001-s0"
    assert replace(trial, learning_rate=1e-3 + 1e-12).id != trial.id


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 2.0), (True, 8.0)])
def test_scaling(use_rslora: bool, scaling: float) -> None:
    assert Trial(16, 32.0, use_rslora, 1e-3, 0).scaling == scaling


def test_a_comparison_is_read_back_from_its_document() -> None:
    comparison = RICH
    document = json.loads(json.dumps(comparison.to_dict()))
    again = RankComparison.from_dict(document)
    assert again.to_dict() == comparison.to_dict()
    assert (again.run, again.recommendation, again.over[0].full) == (
        comparison.run,
        comparison.recommendation,
        comparison.over[0].full,
    )
    assert math.isnan(again.experiments[1].nll)  # it was not finite


@pytest.mark.parametrize("damage", [lambda d: d.pop("baseline"), lambda d: d.update(experiments="none")])
def test_another_document_is_no_comparison(damage: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(json.dumps(RICH.to_dict()))
    damage(document)
    with pytest.raises((KeyError, ValueError, TypeError)):
        RankComparison.from_dict(document)
