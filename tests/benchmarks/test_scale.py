"""The simulated makespan keeps the bounds of any list schedule, and what disturbs only makes it longer."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scale import Disturbance, large_comparison, makespan

LEGS = st.lists(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=12), min_size=1, max_size=3)


@given(LEGS, st.integers(1, 8), st.floats(0.0, 5.0))
def test_no_leg_ends_before_its_work_and_its_longest_pack_allow(
    legs: list[list[float]], workers: int, start: float
) -> None:
    """Graham 1966: giving out in order takes no more than the mean load and the longest pack together."""
    found = makespan(legs, [start] * workers)
    least = sum(max(max(leg), sum(leg) / workers) for leg in legs)
    most = sum(max(leg) + sum(leg) / workers for leg in legs)
    assert start + least <= found * (1 + 1e-9)
    assert found <= (start + most) * (1 + 1e-9)


@given(LEGS, st.floats(0.0, 5.0))
def test_one_worker_takes_the_sum(legs: list[list[float]], start: float) -> None:
    assert makespan(legs, [start]) == pytest.approx(start + sum(map(sum, legs)))


def test_a_leg_waits_for_the_one_before() -> None:
    assert makespan([[3.0, 1.0], [1.0, 1.0]], [0.0, 0.0]) == 4.0
    assert makespan([[3.0, 1.0, 1.0, 1.0]], [0.0, 0.0]) == 3.0
    assert makespan([[1.0, 1.0]], [0.0, 5.0]) == 2.0


@given(st.integers(0, 50))
def test_a_worker_that_is_lost_costs_what_was_not_kept_and_its_replacement(seed: int) -> None:
    disturbance = Disturbance(between_losses=1.0, restart=0.25)
    coarse = makespan([[2.0]], [0.0], disturbance, checkpoints=1, seed=seed)
    fine = makespan([[2.0]], [0.0], disturbance, checkpoints=2000, seed=seed)
    assert 2.0 <= fine <= coarse
    losses = (fine - 2.0) / 0.25
    assert losses == pytest.approx(round(losses), abs=0.1)


def test_losses_are_as_many_as_their_rate_says() -> None:
    disturbance = Disturbance(between_losses=10.0, restart=1.0)
    took = makespan([[1.0] * 20_000], [0.0], disturbance, checkpoints=10_000)
    assert (took - 20_000) / (20_000 / 10) == pytest.approx(1.0, abs=5 / math.sqrt(2_000))


def test_uneven_speed_is_lognormal() -> None:
    took = makespan([[1.0] * 20_000], [0.0], Disturbance(sigma=0.3))
    assert took / 20_000 == pytest.approx(math.exp(0.3**2 / 2), rel=0.02)


def test_the_large_comparison_has_the_steps_of_its_schedule() -> None:
    legs = large_comparison([1.0], seed=0)
    assert [len(leg) for leg in legs] == [160, 80, 40]
    assert sum(map(sum, legs)) == pytest.approx(160 * 0.5 + 80 * 0.25 + 40 * 0.25)
