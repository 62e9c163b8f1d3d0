"""One small comparison, and what it ends with where nothing disturbs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rankwise import ComparisonConfig, run_rank_comparison
from tests.compare.runs import given_costs, tiny_comparison
from tests.data import sentences


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    return tiny_comparison(
        tmp_path_factory.mktemp("model") / "bert",
        train=sentences(60, seed=1),
        validation=sentences(20, seed=2),
        test=sentences(20, seed=3),
        learning_rates=(1e-3, 1e6),  # of which one diverges
        seeds=1,
        steps=6,
        evaluations=3,
        pack_size=2,
    )


@pytest.fixture(scope="session")
def undisturbed(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with given_costs():
        return run_rank_comparison(config, run=tmp_path_factory.mktemp("runs") / "undisturbed").run


@pytest.fixture(name="given_costs")
def _given_costs() -> Iterator[None]:
    with given_costs():
        yield
