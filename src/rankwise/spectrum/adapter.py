"""The singular values of ΔW = B·A, and the best factors of a lower rank, without ΔW.

With B = Q_B R_B and Aᵀ = Q_A R_A the core R_B R_Aᵀ, at most rank × rank, has ΔW's singular values, and its singular
vectors, turned by Q_B and Q_A, are ΔW's. So a module takes O((d_in + d_out) · rank²) operations and no matrix of
d_out × d_in. Gram matrices would be quicker than QR, but square the condition: small singular values would drown.
All in float64, which costs seconds for an adapter of a 7B model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROUNDING = 1e-6  # of the largest singular value: adapters are kept in float32 at best


@dataclass(frozen=True)
class Svd:
    """A matrix of low rank by its singular vectors and values, the largest first."""

    u: Float64[Tensor, "outputs values"]
    values: Float64[Tensor, " values"]
    vt: Float64[Tensor, "values inputs"]


@contextmanager
def one_thread() -> Iterator[None]:
    """With matrices so narrow, threads wait for each other longer than they compute: on two busy cores three times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def singular_values(a: Float[Tensor, "rank inputs"], b: Float[Tensor, "outputs rank"]) -> Float64[Tensor, " values"]:
    """Those of B·A, the largest first: min(rank, inputs, outputs) of them."""
    _, right = torch.linalg.qr(a.double().T, mode="r")
    _, left = torch.linalg.qr(b.double(), mode="r")
    values: Tensor = torch.linalg.svdvals(left @ right.T)
    return values


def decomposed(a: Float[Tensor, "rank inputs"], b: Float[Tensor, "outputs rank"]) -> Svd:
    """B·A: min(rank, inputs, outputs) singular values of it."""
    right, right_core = torch.linalg.qr(a.double().T)
    left, left_core = torch.linalg.qr(b.double())
    u, values, vt = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return Svd(left @ u, values, vt @ right.T)


def truncated(
    a: Float[Tensor, "rank inputs"], b: Float[Tensor, "outputs rank"], rank: int
) -> tuple[Float64[Tensor, "lower inputs"], Float64[Tensor, "outputs lower"]]:
    """A and B of the lower rank whose product is nearest to B·A in the Frobenius norm (Eckart & Young 1936).

    Each takes the square root of the singular values: both are then of one size, as half precision and further
    training need.
    """
    whole = decomposed(a, b)
    roots = whole.values[:rank].sqrt()
    return roots[:, None] * whole.vt[:rank], whole.u[:, :rank] * roots


def energy_by_rank(spectra: Sequence[Float64[Tensor, " _"]]) -> tuple[float, ...]:
    """At k = 0, 1, … the share of the squares of all spectra that the k largest values of each make up.

    1 throughout where all values are 0: nothing is lost.

    >>> one, other = torch.tensor([2.0, 1.0, 1.0]).double(), torch.tensor([3.0, 1.0]).double()
    >>> energy_by_rank([one, other])
    (0.0, 0.8125, 0.9375, 1.0)
    """
    squares = torch.zeros(1 + max(map(len, spectra)), dtype=torch.float64)
    for spectrum in spectra:
        squares[1 : 1 + len(spectrum)] += spectrum**2
    kept = squares.cumsum(0)
    return tuple((kept / kept[-1] if kept[-1] > 0 else torch.ones_like(kept)).tolist())


def rank_for(energy: Sequence[float], share: float) -> int:
    """The smallest rank that keeps this share, below 1.

    >>> rank_for((0.0, 0.8, 0.95, 1.0), 0.9)
    2
    """
    return bisect_left(energy, share)


def stable_rank(values: Float64[Tensor, " values"]) -> float:
    return float((values**2).sum() / values[0] ** 2) if values[0] > 0 else 0.0


def entropy_rank(values: Float64[Tensor, " values"]) -> float:
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp()) if values[0] > 0 else 0.0


def largest_drop(values: Float64[Tensor, " values"]) -> tuple[int, float]:
    """The rank after which the values, the largest first, fall by the largest factor, and that factor.

    What lies below a millionth of the largest value is rounding, and counts as that. (0, 1) where nothing falls.

    >>> largest_drop(torch.tensor([4.0, 3.0, 0.5, 0.4]).double())
    (2, 6.0)
    """
    if len(values) < 2 or values[0] == 0:
        return 0, 1.0
    floored = values.clamp(min=_ROUNDING * float(values[0]))
    ratios = floored[:-1] / floored[1:]
    rank = int(ratios.argmax()) + 1
    return rank, float(ratios[rank - 1])
