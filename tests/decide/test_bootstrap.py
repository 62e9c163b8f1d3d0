from __future__ import annotations

import numpy as np
import pytest

from rankwise.decide.bootstrap import crossed_bootstrap
from tests.decide.simulated import crossed


def test_the_spread_is_that_of_seeds_and_examples_drawn_at_once() -> None:
    """Against the same resampling, written as a plain loop over indices."""
    scores = crossed(np.random.default_rng(0), 4, 30, of_seeds=0.5, of_examples=1.0, residual=1.0)
    means = crossed_bootstrap(scores[None], resamples=4000)[:, 0]
    generator = np.random.default_rng(1)
    loop = [scores[generator.integers(4, size=4)][:, generator.integers(30, size=30)].mean() for _ in range(4000)]
    assert means.mean() == pytest.approx(np.mean(loop), abs=0.02)
    assert means.std() == pytest.approx(np.std(loop), rel=0.06)
    assert np.quantile(means, [0.05, 0.95]) == pytest.approx(np.quantile(loop, [0.05, 0.95]), abs=0.05)


def test_clusters_are_drawn_whole() -> None:
    generator = np.random.default_rng(0)
    groups = np.sort(generator.integers(12, size=60))
    scores = crossed(generator, 3, 12, of_seeds=0.1, of_examples=1.0, residual=0.1)[:, groups]
    means = crossed_bootstrap(scores[None], groups=groups * 7 - 3, resamples=4000)[:, 0]
    loop = []
    for _ in range(4000):
        drawn = np.concatenate([np.flatnonzero(groups == one) for one in generator.choice(np.unique(groups), 12)])
        loop.append(scores[generator.integers(3, size=3)][:, drawn].mean())
    assert means.std() == pytest.approx(np.std(loop), rel=0.06)
    assert means.std() > 1.5 * crossed_bootstrap(scores[None], resamples=4000).std()


def test_ranks_share_the_draws() -> None:
    scores = crossed(np.random.default_rng(0), 3, 50, of_seeds=0.1, of_examples=1.0, residual=0.5)
    means = crossed_bootstrap(np.stack([scores, scores + 0.25]), resamples=300)
    assert means[:, 1] - means[:, 0] == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_single_precision_inside_does_not_show(offset: float) -> None:
    scores = crossed(np.random.default_rng(0), 3, 50, of_seeds=0.1, of_examples=1.0, residual=0.5)
    means = crossed_bootstrap(scores[None] + offset, resamples=300)
    assert means - offset == pytest.approx(crossed_bootstrap(scores[None], resamples=300), abs=1e-6)
