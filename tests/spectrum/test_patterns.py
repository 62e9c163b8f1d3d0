"""Ranks for a budget: within it, growing with it, and the best there is; and PEFT reads them as they were meant."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import UserError
from rankwise.spectrum.patterns import ranks_for_budget

Case = tuple[dict[str, list[float]], dict[str, int]]


@st.composite
def cases(draw: st.DrawFn, *, falling: bool = False) -> Case:
    names = [f"module {number}" for number in range(draw(st.integers(1, 4)))]
    energy = st.lists(st.floats(0 if falling else -1, 10), min_size=1, max_size=5)
    energies = {name: draw(energy) for name in names}
    if falling:
        energies = {name: sorted(values, reverse=True) for name, values in energies.items()}
    return energies, {name: draw(st.integers(1, 9)) for name in names}


def given_out(case: Case, params: int) -> dict[str, int]:
    energies, costs = case
    return ranks_for_budget({name: torch.tensor(each).double() for name, each in energies.items()}, costs, params)


@given(case=cases(), more=st.lists(st.integers(0, 60), min_size=2, max_size=2).map(sorted))
def test_a_budget_is_kept_and_more_of_it_takes_nothing_away(case: Case, more: list[int]) -> None:
    least = sum(case[1].values())
    small, large = (given_out(case, least + extra) for extra in more)
    for ranks, extra in zip((small, large), more, strict=True):
        assert sum(ranks[name] * cost for name, cost in case[1].items()) <= least + extra
        assert all(1 <= ranks[name] <= len(case[0][name]) for name in ranks)
    assert all(small[name] <= large[name] for name in small)


@given(case=cases(falling=True), extra=st.integers(0, 20))
def test_with_equal_costs_no_other_ranks_keep_more(case: Case, extra: int) -> None:
    energies = case[0]
    costs = dict.fromkeys(energies, 1)
    budget = len(costs) + extra
    found = given_out((energies, costs), budget)
    kept = sum(sum(energies[name][:rank]) for name, rank in found.items())
    each = [range(1, len(values) + 1) for values in energies.values()]
    best = max(
        sum(sum(values[:rank]) for values, rank in zip(energies.values(), ranks, strict=True))
        for ranks in itertools.product(*each)
        if sum(ranks) <= budget
    )
    assert kept == pytest.approx(best)


def test_a_budget_below_rank_1_everywhere_is_refused() -> None:
    with pytest.raises(UserError, match="rank 1 everywhere takes 7 parameters, more than 6"):
        given_out(({"a": [1.0], "b": [1.0]}, {"a": 3, "b": 4}), 6)
