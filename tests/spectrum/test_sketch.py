"""Sketches against the dense SVD, and confirmed energy against noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rankwise.spectrum.adapter import Svd, energy_by_rank, rank_for
from rankwise.spectrum.sketch import co_range_size, confirmed_by_rank, confirmed_energy, reconstructed


def gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense(svd: Svd) -> Tensor:
    return svd.u * svd.values @ svd.vt


def sketched(matrix: Tensor, k: int, generator: torch.Generator) -> Svd:
    omega = gaussian(generator, k, matrix.shape[1])
    psi = gaussian(generator, co_range_size(k), matrix.shape[0])
    return reconstructed(matrix @ omega.T, psi @ matrix, psi)


@given(
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 40),
    rank=st.integers(0, 8),
    beyond=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_a_matrix_of_rank_at_most_k_is_found_exactly(
    outputs: int, inputs: int, rank: int, beyond: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = gaussian(generator, outputs, rank) @ gaussian(generator, rank, inputs)
    svd = sketched(matrix, max(1, rank) + beyond, generator)
    torch.testing.assert_close(dense(svd), matrix, rtol=1e-5, atol=1e-5)
    assert bool((svd.values[:-1] >= svd.values[1:]).all())
    expected = torch.linalg.svdvals(matrix)[: len(svd.values)]
    torch.testing.assert_close(svd.values[: len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_of_a_matrix_of_full_rank_the_error_is_near_that_of_the_best_rank() -> None:
    """Theorem 4.3 of the source: within a factor of 2 or so of the tail, where k exceeds the rank by a few."""
    generator = torch.Generator().manual_seed(0)
    matrix = gaussian(generator, 60, 10) @ gaussian(generator, 10, 50) + 0.01 * gaussian(generator, 60, 50)
    tail = torch.linalg.svdvals(matrix)[20:].norm()
    assert tail < (dense(sketched(matrix, 20, generator)) - matrix).norm() < 3 * tail


def halves(rank: int, noise: float, seed: int) -> tuple[Svd, Svd]:
    """A signal of this rank and equal singular values, with noise that is another in either half."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(gaussian(generator, size, rank))[0] for size in (60, 50))
    signal = left @ right.T

    def half() -> Svd:
        u, values, vt = torch.linalg.svd(signal + noise * gaussian(generator, 60, 50), full_matrices=False)
        return Svd(u, values, vt)

    return half(), half()


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_confirmed_energy_names_the_rank_of_the_signal_and_plain_energy_does_not(rank: int) -> None:
    one, other = halves(rank, 0.03, seed=rank)
    confirmed = confirmed_by_rank([confirmed_energy(one, other)])
    assert rank <= rank_for(confirmed, 0.95) <= rank + 1
    assert rank_for(energy_by_rank([one.values]), 0.95) > 4 * rank


def test_noise_confirms_nothing_on_average() -> None:
    shares = []
    for seed in range(20):
        one, other = halves(0, 1.0, seed)
        shares.append(float(confirmed_energy(one, other).sum() / (one.values.norm() * other.values.norm())))
    assert abs(sum(shares) / len(shares)) < 0.01
    assert confirmed_by_rank([torch.zeros(3).double()]) == (1.0, 1.0, 1.0, 1.0)


@given(seed=st.integers(0, 1000), rank=st.integers(1, 6))
def test_a_matrix_confirms_itself(seed: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one = sketched(gaussian(generator, 20, rank) @ gaussian(generator, rank, 30), rank, generator)
    energy = confirmed_energy(one, one)
    torch.testing.assert_close(energy, one.values**2)
    curve = confirmed_by_rank([energy])
    assert curve[0] == 0
    assert curve[-1] == 1
    assert list(curve) == sorted(curve)
