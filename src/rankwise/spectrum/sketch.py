"""The spectrum of a gradient from products with random matrices, and how much of it is signal.

The gradient G (d_out × d_in) of an adapted weight is never formed. What a backward pass through adapters gives is
Y = G·Ωᵀ and W = Ψ·G with random Ω (k × d_in) and Ψ (l × d_out). With Q = orth(Y), G ≈ Q·(Ψ·Q)⁺·W: one pass, two
sides, exact where G's rank is at most k. Source: Tropp, Yurtsever, Udell & Cevher 2017, "Practical sketching
algorithms for low-rank matrix approximation", algorithm 4; l = 2k + 1 is their advice.

A gradient averaged over finitely many examples is signal and noise of full rank, and its singular values are those of
both. So two halves of the examples are sketched apart: a direction of one half has the energy that the other half
confirms, uᵀG₁v · uᵀG₂v. Noise has mean zero there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from rankwise.spectrum.adapter import Svd


def co_range_size(k: int) -> int:
    """l for a range sketch of k columns. Source: Tropp et al. 2017, section 4.5 for real matrices."""
    return 2 * k + 1


def reconstructed(
    range_sketch: Float[Tensor, "outputs k"],
    co_range_sketch: Float[Tensor, "l inputs"],
    psi: Float[Tensor, "l outputs"],
) -> Svd:
    """G from Y = G·Ωᵀ, W = Ψ·G and Ψ: its k largest singular values and their vectors, about."""
    q, _ = torch.linalg.qr(range_sketch.double())
    basis, core = torch.linalg.qr(psi.double() @ q)
    inner = torch.linalg.solve_triangular(core, basis.T @ co_range_sketch.double(), upper=True)
    u, values, vt = torch.linalg.svd(inner, full_matrices=False)
    return Svd(q @ u, values, vt)


def confirmed_energy(one: Svd, other: Svd) -> Float64[Tensor, " values"]:
    """Of each direction, uᵀG₁v · uᵀG₂v: mean over the directions of either half. Noise makes some negative."""

    def in_directions_of(mine: Svd, its: Svd) -> Tensor:
        return mine.values * (((mine.u.T @ its.u) * its.values) * (its.vt @ mine.vt.T).T).sum(dim=1)

    return (in_directions_of(one, other) + in_directions_of(other, one)) / 2


def confirmed_by_rank(energies: Sequence[Float64[Tensor, " _"]]) -> tuple[float, ...]:
    """At k = 0, 1, … the share of all energy in the k first directions of each matrix: never falling, 1 at its highest.

    1 throughout where the halves confirm nothing.

    >>> confirmed_by_rank([torch.tensor([6.0, 1.0, -1.0]).double(), torch.tensor([2.0, 1.0]).double()])
    (0.0, 0.8, 1.0, 1.0)
    """
    summed = torch.zeros(1 + max(map(len, energies)), dtype=torch.float64)
    for energy in energies:
        summed[1 : 1 + len(energy)] += energy
    kept = summed.cumsum(0).cummax(0).values
    return tuple((kept / kept[-1] if kept[-1] > 0 else torch.ones_like(kept)).tolist())
