"""Where to look for a rank, before training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rankwise.records.plain import plain
from rankwise.records.shown import Shown


@dataclass(frozen=True)
class ConfirmedSpectrum:
    """The directions of matrices that two halves of the examples agree on: all modules, a kind of projection, or one.

    `energy[k]` is the share of the confirmed energy that is kept if each matrix is cut to rank k, from k = 0 on; 1
    throughout where the halves confirm nothing. `rank_90` and `rank_95` are the smallest such k that keep 90 % and 95 %
    of it. `stable_rank` is the sum of the confirmed energies over the largest, `entropy_rank` the exponential of the
    entropy of their square roots: means over the modules, 0 where nothing is confirmed.
    """

    name: str
    modules: int
    energy: tuple[float, ...]
    rank_90: int
    rank_95: int
    stable_rank: float
    entropy_rank: float


@dataclass(frozen=True)
class ProbePoint:
    """What was measured after so many steps of warm-up; `confirmed` is the share of all energy that the halves confirm.

    The rest is noise: it differs from half to half. `by_chance` says that halves which share nothing may confirm as
    much: then the ranks say nothing.
    """

    step: int
    confirmed: float
    by_chance: bool
    overall: ConfirmedSpectrum
    kinds: tuple[ConfirmedSpectrum, ...]
    modules: tuple[ConfirmedSpectrum, ...]


@dataclass(frozen=True)
class RankPattern:
    """A rank for each module within a budget, as PEFT's LoraConfig takes it: r, lora_alpha and their patterns.

    `params` are those of A and B; every module has the same scaling.
    """

    params: int
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]


@dataclass(frozen=True)
class RankProbe(Shown):
    """A hint at the rank that a task needs, from a short warm-up: no measurement of it.

    `rank` is the one named, a power of two, and `ranks` a grid around it to compare. It is read off `update`: what two
    warm-ups of `warm_up_rank`, each on its half of the `examples`, both changed. `gradients` are the spectra of the
    mean gradient at the start and on the way. `at_least` says that the warm-up's rank bounds what could be named.
    `capacity_bits` is what the training set may have to tell by a rule of thumb, and `capacity_floor` the smallest rank
    that could hold it. `seconds` and `peak_memory_bytes` are the probe's own, without loading; the base model's bytes
    are in the latter.
    """

    model: str
    task: str
    examples: int
    batch_size: int
    learning_rate: float
    warm_up_rank: int
    rank: int
    at_least: bool
    ranks: tuple[int, ...]
    update: ProbePoint
    gradients: tuple[ProbePoint, ...]
    capacity_bits: float
    capacity_floor: int
    pattern: RankPattern | None
    seconds: float
    peak_memory_bytes: int | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {name: plain(value) for name, value in dataclasses.asdict(self).items()}
