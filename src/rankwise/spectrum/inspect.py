"""How much of its rank a trained adapter uses."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import UserError
from rankwise.lora.peft_files import AdaptedModule, AdapterFiles, find_adapter, open_weights
from rankwise.records import AdapterSpectrum, Gap, GroupSpectrum, ModuleSpectrum, scaling_of
from rankwise.spectrum.adapter import (
    energy_by_rank,
    entropy_rank,
    largest_drop,
    one_thread,
    rank_for,
    singular_values,
    stable_rank,
)
from rankwise.spectrum.places import place

_PEFT_ALPHA = 8  # LoraConfig's default, whatever the rank
_TRAP_SCALING = 0.25
_GAP = 3.0  # smaller falls are chance: benchmarks/planted_spectrum.py


def inspect_adapter(path: str | Path) -> AdapterSpectrum:
    """The spectrum of every adapted module's update, and of all together, by layer and by kind of projection.

    `path` is a PEFT directory with a LoRA adapter, a run directory, or one of its trials'. Raises `UserError`
    for what is no such adapter, or one whose update is not B·A alone (DoRA, biases).
    """
    return spectrum_of(find_adapter(Path(path)))


def spectrum_of(files: AdapterFiles) -> AdapterSpectrum:
    with one_thread():
        modules = [_module_spectrum(module, a, b) for module, a, b in factors(files)]
    rank, alpha = files.settings["r"], float(files.settings["lora_alpha"])
    use_rslora = bool(files.settings.get("use_rslora"))
    scaling = scaling_of(alpha, rank, use_rslora=use_rslora)
    in_layers = [module for module in modules if module.layer is not None]
    return AdapterSpectrum(
        adapter=files.directory,
        rank=rank,
        alpha=alpha,
        use_rslora=use_rslora,
        scaling=scaling,
        default_alpha_trap=alpha == _PEFT_ALPHA and scaling <= _TRAP_SCALING,
        overall=_group("all", modules),
        kinds=tuple(_group(kind, of) for kind, of in _by(modules, "kind")),
        layers=tuple(_group(f"layer {layer}", of) for layer, of in _by(in_layers, "layer")),
        modules=tuple(modules),
    )


def factors(files: AdapterFiles) -> Iterator[tuple[AdaptedModule, Tensor, Tensor]]:
    """Every module with its A and B, read when their turn comes. Raises `UserError` for figures that are not finite."""
    with open_weights(files.weights) as weights:
        for module in files.modules:
            a, b = weights.get_tensor(module.tensor_a), weights.get_tensor(module.tensor_b)
            # Not every dtype can be asked.
            if not all(torch.isfinite(factor.float()).all() for factor in (a, b)):
                raise UserError(
                    f"adapter {files.directory}: {module.name} has weights that are not finite: it diverged"
                )
            yield module, a, b


def _module_spectrum(module: AdaptedModule, a: Tensor, b: Tensor) -> ModuleSpectrum:
    values = abs(module.scaling) * singular_values(a, b)
    energy = energy_by_rank([values])
    drop = Gap(*largest_drop(values))
    layer, kind = place(module.name)
    return ModuleSpectrum(
        name=module.name,
        kind=kind,
        layer=layer,
        d_in=module.d_in,
        d_out=module.d_out,
        rank=module.rank,
        alpha=module.alpha,
        scaling=module.scaling,
        singular_values=tuple(values.tolist()),
        energy=energy,
        stable_rank=stable_rank(values),
        entropy_rank=entropy_rank(values),
        used=rank_for(energy, 0.99) / module.rank,
        gap=drop if drop.factor >= _GAP else None,
    )


def _by(modules: Iterable[ModuleSpectrum], field: str) -> list[tuple[Any, list[ModuleSpectrum]]]:
    """Modules by the value of a field, in the order in which values appear."""
    groups: dict[Hashable, list[ModuleSpectrum]] = {}
    for module in modules:
        groups.setdefault(getattr(module, field), []).append(module)
    return list(groups.items())


def _group(name: str, modules: list[ModuleSpectrum]) -> GroupSpectrum:
    energy = energy_by_rank([torch.tensor(module.singular_values, dtype=torch.float64) for module in modules])
    ranks = [module.rank for module in modules]
    return GroupSpectrum(
        name=name,
        modules=len(modules),
        rank_low=min(ranks),
        rank_high=max(ranks),
        stable_rank=sum(module.stable_rank for module in modules) / len(modules),
        entropy_rank=sum(module.entropy_rank for module in modules) / len(modules),
        energy=energy,
        rank_90=rank_for(energy, 0.90),
        rank_95=rank_for(energy, 0.95),
        rank_99=rank_for(energy, 0.99),
        used=sum(module.used * module.rank for module in modules) / sum(ranks),
        gaps=tuple(sorted(module.gap.rank for module in modules if module.gap is not None)),
    )
