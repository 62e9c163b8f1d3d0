"""Against scikit-learn, and the intervals against resampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from rankwise.decide.guards import macro_f1, matthews, pseudo_values
from rankwise.decide.interval import crossed_interval

ORACLES: list[tuple[Callable[..., Any], Callable[..., float]]] = [
    (macro_f1, lambda labels, predicted: metrics.f1_score(labels, predicted, average="macro")),
    (matthews, metrics.matthews_corrcoef),
]


@pytest.mark.parametrize(("metric", "oracle"), ORACLES)
@settings(max_examples=60)
@given(st.integers(2, 5), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_a_seeds_mean_is_the_metric(
    metric: Callable[..., Any], oracle: Callable[..., float], classes: int, examples: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], generator.integers(classes, size=examples)])  # scikit-learn wants two classes
    examples = len(labels)
    predicted = np.where(generator.random((3, examples)) < 0.6, labels, generator.integers(classes, size=examples))
    values = pseudo_values(metric, predicted, labels, classes)
    assert values.shape == (3, examples)
    for row, seed_predicted in zip(values, predicted, strict=True):
        assert row.mean() == pytest.approx(oracle(labels, seed_predicted), abs=1e-9)


@pytest.mark.parametrize("metric", [macro_f1, matthews])
def test_the_spread_over_examples_is_the_bootstraps(metric: Callable[..., Any]) -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(3, size=500, p=[0.6, 0.3, 0.1])
    predicted = np.where(generator.random(500) < 0.7, labels, generator.integers(3, size=500))
    values = pseudo_values(metric, predicted[None], labels, 3)[0]
    resampled = []
    for _ in range(1000):
        drawn = generator.integers(500, size=500)
        resampled.append(pseudo_values(metric, predicted[None, drawn], labels[drawn], 3).mean())
    assert values.std() / np.sqrt(500) == pytest.approx(np.std(resampled), rel=0.08)


@pytest.mark.parametrize(("metric", "value"), [(macro_f1, 1.0), (matthews, 0.0)])
def test_one_class_alone_gives_no_numbers_out_of_nothing(metric: Callable[..., Any], value: float) -> None:
    labels = np.zeros(10, dtype=np.int64)
    values = pseudo_values(metric, np.zeros((2, 10), dtype=np.int64), labels, 3)
    assert values == pytest.approx(np.full((2, 10), value))
    assert crossed_interval(values).mean == pytest.approx(value)
