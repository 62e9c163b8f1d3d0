"""Against dense algebra: the whole ΔW, and its SVD by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rankwise.spectrum.adapter import (
    energy_by_rank,
    entropy_rank,
    largest_drop,
    rank_for,
    singular_values,
    stable_rank,
    truncated,
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A and B of any shape, their rank also above inputs or outputs; some of deficient rank or of half precision."""
    rank, inputs, outputs = draw(st.integers(1, 12)), draw(st.integers(1, 24)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    b[:, draw(st.integers(0, rank)) :] = 0
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    return a.to(dtype), b.to(dtype)


def dense(pair: tuple[Tensor, Tensor]) -> np.ndarray:
    a, b = pair
    return (b.double() @ a.double()).numpy()


@given(pairs())
def test_singular_values_are_those_of_the_whole_matrix(pair: tuple[Tensor, Tensor]) -> None:
    ours = singular_values(*pair).numpy()
    expected = np.linalg.svd(dense(pair), compute_uv=False)
    assert len(ours) == min(len(pair[0]), len(expected))
    assert np.allclose(ours, expected[: len(ours)], rtol=0, atol=1e-5)
    assert np.allclose(expected[len(ours) :], 0, atol=1e-5)


@given(pairs(), st.integers(1, 12))
def test_truncation_is_the_nearest_matrix_of_its_rank_and_balanced(pair: tuple[Tensor, Tensor], rank: int) -> None:
    values = singular_values(*pair)
    rank = min(rank, len(values))
    a, b = truncated(*pair, rank)
    assert (a.shape, b.shape) == ((rank, pair[0].shape[1]), (pair[1].shape[0], rank))
    u, s, vt = np.linalg.svd(dense(pair), full_matrices=False)
    lost = np.linalg.norm((b @ a).numpy() - dense(pair))
    assert lost == pytest.approx(np.linalg.norm(s[rank:]), abs=1e-5)
    assert lost == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-5)
    if rank == len(s) or s[rank - 1] - s[rank] > 1e-3:  # else the nearest is not the only one
        assert np.allclose((b @ a).numpy(), (u[:, :rank] * s[:rank]) @ vt[:rank], rtol=0, atol=1e-5)
    assert torch.allclose(a @ a.T, torch.diag(values[:rank]), rtol=0, atol=1e-5)
    assert torch.allclose(b.T @ b, torch.diag(values[:rank]), rtol=0, atol=1e-5)


@given(pairs())
def test_effective_ranks_lie_between_one_and_the_rank(pair: tuple[Tensor, Tensor]) -> None:
    values = singular_values(*pair)
    if values[0] > 0:
        count = len(values) + 1e-9
        assert 1 - 1e-9 <= stable_rank(values) <= count
        assert 1 - 1e-9 <= entropy_rank(values) <= count
        norms = np.linalg.norm(dense(pair)) / np.linalg.norm(dense(pair), 2)
        assert stable_rank(values) == pytest.approx(norms**2)


def test_effective_ranks_of_known_spectra() -> None:
    equal, one = torch.tensor([2.0, 2, 2, 2, 0]).double(), torch.tensor([3.0, 0, 0]).double()
    assert (stable_rank(equal), entropy_rank(equal)) == (pytest.approx(4), pytest.approx(4))
    assert (stable_rank(one), entropy_rank(one)) == (pytest.approx(1), pytest.approx(1))
    halves = torch.tensor([2.0, 1.0, 1.0]).double()
    assert stable_rank(halves) == pytest.approx(6 / 4)
    assert entropy_rank(halves) == pytest.approx(2**1.5)  # an entropy of 1.5 bits
    assert (stable_rank(0 * one), entropy_rank(0 * one)) == (0.0, 0.0)


@given(st.lists(pairs(), min_size=1, max_size=4), st.floats(0.01, 0.999))
def test_the_rank_for_a_share_is_the_smallest_that_keeps_it(many: list[tuple[Tensor, Tensor]], share: float) -> None:
    energy = energy_by_rank([singular_values(*pair) for pair in many])
    rank = rank_for(energy, share)
    whole = sum(np.linalg.norm(dense(pair)) ** 2 for pair in many)
    cuts = [[truncated(*pair, k) if k else None for pair in many] for k in range(rank + 1)]
    kept = [sum(float(torch.linalg.norm(c[1] @ c[0])) ** 2 for c in cut if c is not None) for cut in cuts]
    assert kept[rank] >= (share - 1e-9) * whole
    assert rank == 0 or kept[rank - 1] < (share + 1e-9) * whole


@given(
    st.integers(1, 7), st.floats(1.5, 100), st.floats(1e-3, 1e3), st.lists(st.floats(1.0, 1.2), min_size=7, max_size=7)
)
def test_the_largest_drop_is_where_it_was_put(rank: int, factor: float, size: float, others: list[float]) -> None:
    ratios = [*others[: rank - 1], factor, *others[rank:]]
    values = size / np.cumprod([1.0, *ratios])
    after, found = largest_drop(torch.from_numpy(values))
    assert (after, found) == (rank, pytest.approx(factor))


def test_drops_within_rounding_are_none() -> None:
    assert largest_drop(torch.tensor([2.0, 1.0, 1e-9, 1e-15, 0.0]).double()) == (2, pytest.approx(0.5e6))
    assert largest_drop(torch.tensor([1.0, 1.0]).double()) == (1, 1.0)
    assert largest_drop(torch.tensor([1.0]).double()) == (0, 1.0)
    assert largest_drop(torch.zeros(3).double()) == (0, 1.0)
