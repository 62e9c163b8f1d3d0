from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compare.runs import given_costs


@pytest.fixture(name="given_costs")
def _given_costs() -> Iterator[None]:
    """For the test itself: a run that its module shares is made before, and measured."""
    with given_costs():
        yield
