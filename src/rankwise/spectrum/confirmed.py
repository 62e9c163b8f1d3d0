"""What two halves of the examples agree on, by module, and its spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from rankwise.records import ConfirmedSpectrum, ProbePoint
from rankwise.spectrum.adapter import Svd, entropy_rank, rank_for, stable_rank
from rankwise.spectrum.places import by_kind
from rankwise.spectrum.sketch import confirmed_by_rank, confirmed_energy

# What is confirmed by chance stays below so many standard deviations. Measured on planted tasks: 2.4 at most in 6 of
# rank 0, 16 at least in 24 of rank 2 to 16.
_DEVIATIONS = 5


@dataclass(frozen=True)
class Confirmed:
    """The confirmed energy of each direction of every module, by its name.

    `total` is all energy there is. `by_chance` is the standard deviation of what halves confirm that share nothing,
    where their entries are as if drawn one by one: then two matrices have a cosine of variance 1/(d_out·d_in).
    """

    step: int
    confirmed: Mapping[str, Float64[Tensor, " values"]]
    total: float
    by_chance: float


def compared(step: int, one: Mapping[str, Svd], other: Mapping[str, Svd]) -> Confirmed:
    confirmed = {name: confirmed_energy(svd, other[name]) for name, svd in one.items()}
    totals = {name: float(svd.values.norm() * other[name].values.norm()) for name, svd in one.items()}
    sizes = {name: len(svd.u) * svd.vt.shape[1] for name, svd in one.items()}
    by_chance = math.sqrt(sum(totals[name] ** 2 / sizes[name] for name in one))
    return Confirmed(step, confirmed, sum(totals.values()), by_chance)


def point_of(measured: Confirmed) -> ProbePoint:
    energies = measured.confirmed
    kept = sum(float(energy.sum()) for energy in energies.values())
    return ProbePoint(
        step=measured.step,
        confirmed=max(0.0, kept / measured.total) if measured.total > 0 else 0.0,
        by_chance=kept <= _DEVIATIONS * measured.by_chance,
        overall=_spectrum("all", list(energies.values())),
        kinds=tuple(_spectrum(kind, [energies[name] for name in names]) for kind, names in by_kind(energies).items()),
        modules=tuple(_spectrum(name, [energy]) for name, energy in energies.items()),
    )


def _spectrum(name: str, energies: Sequence[Float64[Tensor, " _"]]) -> ConfirmedSpectrum:
    curve = confirmed_by_rank(energies)
    values = [energy.clamp(min=0).sort(descending=True).values.sqrt() for energy in energies]
    return ConfirmedSpectrum(
        name=name,
        modules=len(energies),
        energy=curve,
        rank_90=rank_for(curve, 0.90),
        rank_95=rank_for(curve, 0.95),
        stable_rank=sum(map(stable_rank, values)) / len(values),
        entropy_rank=sum(map(entropy_rank, values)) / len(values),
    )
