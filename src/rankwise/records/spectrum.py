"""What the rank of a trained adapter is used for, and what became of one that was made smaller."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.records.comparison import AccuracyOf
from rankwise.records.plain import plain
from rankwise.records.recommendation import Interval
from rankwise.records.shown import Shown


@dataclass(frozen=True)
class Gap:
    """Singular values fall by `factor` after the first `rank` of them: σ_rank / σ_rank+1, the largest such ratio."""

    rank: int
    factor: float


@dataclass(frozen=True)
class ModuleSpectrum:
    """One module's update ΔW = scaling · B·A.

    `singular_values` are the largest first, min(rank, d_in, d_out) of them. `energy[k]` is the share of their squares
    (of ΔW's squared Frobenius norm) that the best update of rank k keeps, from k = 0 on; 1 throughout where ΔW is 0.
    `stable_rank` is the sum of the squares over the largest of them (Rudelson & Vershynin 2007), `entropy_rank` the
    exponential of the entropy of the values over their sum (Roy & Vetterli 2007); both 0 where ΔW is 0. `used` is the
    share of the nominal rank that 99 % of the energy takes. `gap` is None where no value is three times the next one.
    """

    name: str
    kind: str
    layer: int | None
    d_in: int
    d_out: int
    rank: int
    alpha: float
    scaling: float
    singular_values: tuple[float, ...]
    energy: tuple[float, ...]
    stable_rank: float
    entropy_rank: float
    used: float
    gap: Gap | None

    @property
    def norm_squared(self) -> float:
        return sum(value * value for value in self.singular_values)


@dataclass(frozen=True)
class GroupSpectrum:
    """Modules together: all of them, those of a layer, or those of a kind of projection.

    `energy[k]` is what is kept of all their updates if each is cut to rank k, and `rank_90` … the smallest such k that
    keeps 90 % of it, and so on. `stable_rank` and `entropy_rank` are means over the modules, `used` the share of
    their nominal ranks, added up, that 99 % of each one's own energy takes. `gaps` are the ranks after which modules
    have a gap, one for each that has any, in order.
    """

    name: str
    modules: int
    rank_low: int
    rank_high: int
    stable_rank: float
    entropy_rank: float
    energy: tuple[float, ...]
    rank_90: int
    rank_95: int
    rank_99: int
    used: float
    gaps: tuple[int, ...]


@dataclass(frozen=True)
class AdapterSpectrum(Shown):
    """The spectra of an adapter's updates, and what it was trained with.

    `rank`, `alpha` and `scaling` (`alpha/rank`, or `alpha/√rank` with `use_rslora`) are those of modules that no
    pattern names. `default_alpha_trap` says that alpha is PEFT's default, 8, beside a rank so large that updates are
    scaled by a quarter or less: probably nobody chose that.
    """

    adapter: Path
    rank: int
    alpha: float
    use_rslora: bool
    scaling: float
    default_alpha_trap: bool
    overall: GroupSpectrum
    kinds: tuple[GroupSpectrum, ...]
    layers: tuple[GroupSpectrum, ...]
    modules: tuple[ModuleSpectrum, ...]

    def to_dict(self) -> dict[str, Any]:
        return _document(self)


@dataclass(frozen=True)
class ResizedModule:
    """One module before and after; `energy` is the share of its update's squared Frobenius norm that was kept."""

    name: str
    kind: str
    rank_before: int
    rank: int
    alpha: float
    norm_squared_before: float
    energy: float


@dataclass(frozen=True)
class Measured:
    """What an adapter makes of test examples before and after it was made smaller.

    NLL is in nats per example, or per learned token; `accuracy_of` says what accuracies are shares of. Each change is
    the mean over examples of after - before, with its limits at 95 %: of NLL positive is worse, of accuracy better.
    `notes` say what preparing the data changed.
    """

    examples: int
    accuracy_of: AccuracyOf
    nll_before: float
    nll: float
    nll_change: Interval
    accuracy_before: float
    accuracy: float
    accuracy_change: Interval
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ResizedAdapter(Shown):
    """An adapter of lower rank, the nearest there is to `source`; every module's scaling is as it was.

    `energy` is the share that was kept of all updates' squared Frobenius norms. Parameters are those of A and B.
    `measured` is None where no test data were given.
    """

    source: Path
    adapter: Path
    energy: float
    params_before: int
    params: int
    modules: tuple[ResizedModule, ...]
    measured: Measured | None = None

    def to_dict(self) -> dict[str, Any]:
        return _document(self)


def _document(record: AdapterSpectrum | ResizedAdapter) -> dict[str, Any]:
    document = dataclasses.asdict(
        record, dict_factory=lambda items: {n: str(v) if isinstance(v, Path) else v for n, v in items}
    )
    return {name: plain(value) for name, value in document.items()}
