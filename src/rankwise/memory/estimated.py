"""The model that estimates are made of: looked up once, and each of its training steps estimated once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.base.outline import shipped_outline
from rankwise.base.quantize import stored_quantization, stored_whole
from rankwise.base.shapes import head_modules, is_named, linear_layers, match_targets, outline_of, sizes_of, within
from rankwise.base.source import find_config, named_entry
from rankwise.errors import UserError
from rankwise.memory.closed_form import closed_form
from rankwise.memory.parameters import adapted_layers, check_adaptable
from rankwise.memory.settings import Method, StepSettings
from rankwise.records import Calibration, LayerGroup, MemoryEstimate, MemoryParts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from rankwise.memory.steps import Steps

# What the published measurements of benchmarks/memory lie between: allocated bytes, and reserved ones, as simulated.
_SIMULATED = (0.98, 1.02)
# The formula knows neither the model's code nor the allocator.
_FORMULA = (0.75, 1.35)


class EstimatedModel:
    """A model and the layers to adapt, and the estimates of its training steps.

    The formula does not build a model of which an outline is shipped, and does not wait for torch.
    """

    def __init__(
        self, model: str | Path | PreTrainedConfig, targets: str | Sequence[str], method: Method, pack_size: int = 0
    ) -> None:
        self._source = model
        self.targets = targets
        self.method = method
        self.pack_size = pack_size
        self.notes: tuple[str, ...] = ()
        entry = named_entry(model) if method == "formula" and isinstance(model, str | Path) else None
        shipped = None if entry is None else shipped_outline(entry.name)
        self._shipped = shipped is not None
        self.outline, self.sizes = shipped or (outline_of(self.model), sizes_of(self.model))
        self.trained = () if self.sizes.causal else head_modules(self.outline)
        self.layers = linear_layers(self.outline)
        # Packs adapt linear layers alone, PEFT a mixture's experts as well.
        layers_of = match_targets if pack_size else adapted_layers
        self.adapted = layers_of(self.outline if shipped else self.model, targets, trained=self.trained)
        if not shipped and not pack_size:
            check_adaptable(self.model, self.adapted)
        self.total_params = sum(math.prod(shape) for _, shape in self.outline.parameters())
        self.calibration: Calibration | None = None
        self.workspace_bytes: int | None = None  # of the device, where it is known
        self._known: dict[tuple[int | None, StepSettings, int | None], MemoryEstimate] = {}

    @cached_property
    def config(self) -> PreTrainedConfig:
        return find_config(self._source) if isinstance(self._source, str | Path) else self._source

    @cached_property
    def model(self) -> PreTrainedModel:
        """The base model on the meta device."""
        config = self.config  # first: a misspelt name need not wait for torch
        from rankwise.memory.build import meta_step_model

        # Shapes are the same in every dtype.
        return meta_step_model(config, StepSettings())

    @cached_property
    def steps(self) -> Steps:
        """The steps themselves, to follow or to take."""
        from rankwise.memory.steps import Steps

        return Steps(self.config, self.targets, self.pack_size, experts=not set(self.adapted) <= set(self.layers))

    def as_stored(self, settings: StepSettings) -> StepSettings:
        """The settings with a base model as its checkpoint stores it, which a note says.

        Raises `UserError` where another quantisation is asked for.
        """
        if self._shipped:  # the catalogue has models as they were before
            return settings
        name = self._source if isinstance(self._source, str | Path) else self.config.model_type
        try:
            stored = stored_quantization(name, self.config)
        except UserError as error:
            self.notes += (f"{error}; these figures are of the model as it was before",)
            return settings
        if stored in ("none", settings.quantize):
            return settings
        if settings.quantize != "none":
            raise UserError(f"quantize: the weights of {name} are stored in {stored} already; leave it out")
        if self.pack_size:
            raise UserError(f"engine pack: the weights of {name} are stored in {stored}, of which it estimates no pack")
        self.notes += (f"the weights of {name} are stored in {stored}, and so is the base model here",)
        return replace(settings, quantize=stored)

    @property
    def is_too_low(self) -> bool:
        """Whether the figures are the formula's, of a model with experts, of which it does not know what they keep."""
        experts = any(
            len(shape) == 3 and "Conv" not in module.kind
            for module in self.outline.modules
            for shape in module.parameters.values()
        )
        return self.method == "formula" and experts

    def memory(self, rank: int | None, settings: StepSettings) -> MemoryEstimate:
        """Of a step at this rank; None is full fine-tuning, of a model that is not quantised."""
        if rank is None:
            settings = replace(settings, quantize="none")
        key = rank, settings, self.workspace_bytes
        estimated = self._known.get(key)
        if estimated is None:
            estimated = self._known[key] = self._estimated(rank, settings)
        return estimated if self.calibration is None else _corrected(estimated, self.calibration)

    def trainable_params(self, rank: int | None) -> int:
        if rank is None:
            return self.total_params
        in_full = sum(math.prod(shape) for name, shape in self.outline.parameters() if within(name, self.trained))
        return in_full + sum(layer.lora_params(rank) for layer in self.adapted)

    def groups(self) -> tuple[LayerGroup, ...]:
        """The linear layers by the last part of their names and their shapes."""
        adapted = {layer.name for layer in self.adapted}
        every = {layer.name: layer for layer in (*self.layers, *self.adapted)}
        counts = Counter(
            (_short(layer.name), layer.d_in, layer.d_out, layer.experts, layer.name in adapted)
            for layer in every.values()
        )
        return tuple(
            LayerGroup(name, d_in, d_out, count, experts, is_adapted)
            for (name, d_in, d_out, experts, is_adapted), count in counts.items()
        )

    def _estimated(self, rank: int | None, settings: StepSettings) -> MemoryEstimate:
        if self.sizes.positions is not None and settings.seq_len > self.sizes.positions:
            raise UserError(f"seq-len {settings.seq_len}: the model has positions for {self.sizes.positions} tokens")
        if self.method == "simulate":
            from rankwise.memory.simulate import Unsimulated

            try:
                peak = self.steps.peak(rank, settings, self.workspace_bytes)
                return self._between(rank, peak.memory, _SIMULATED, peak.reserved_bytes, peak.most_bytes, peak.place)
            except Unsimulated as error:
                self.method = "formula"
                self.notes += (f"{error}: the figures are those of the formula, which is rough",)
        return self._computed(rank, settings)

    def _computed(self, rank: int | None, settings: StepSettings) -> MemoryEstimate:
        if self.sizes.hidden_size is None:
            raise UserError(f"a {self.config.model_type} model states no hidden size, which the formula needs")
        kept = (*self.trained, *([] if self.outline.output is None else [self.outline.output]))
        whole = () if self._shipped else stored_whole(self.config)
        memory = closed_form(
            self.layers,
            self.adapted,
            # What transformers leaves as it is: `get_keys_to_not_convert`.
            [
                layer
                for layer in self.layers
                if not within(layer.name, (*kept, *whole)) and not any(is_named(layer.name, name) for name in whole)
            ],
            total_params=self.total_params,
            trainable_params=self.trainable_params(rank),
            hidden_size=self.sizes.hidden_size,
            sizes=self.sizes,
            rank=rank,
            settings=settings,
        )
        return self._between(rank, memory, _FORMULA, memory.total, memory.total, "")

    def _between(
        self, rank: int | None, memory: MemoryParts, bounds: tuple[float, float], reserved: int, most: int, place: str
    ) -> MemoryEstimate:
        return MemoryEstimate(
            rank=rank,
            trainable_params=self.trainable_params(rank),
            memory=memory,
            peak_bytes=memory.total,
            peak_bytes_low=round(bounds[0] * memory.total),
            peak_bytes_high=round(bounds[1] * most),
            reserved_bytes=reserved,
            peak_at=place,
        )


def _corrected(estimate: MemoryEstimate, calibration: Calibration) -> MemoryEstimate:
    """Weights, gradients and states are known to the byte: what was measured corrects the rest."""
    parts = estimate.memory
    memory = replace(
        parts,
        activations=round(calibration.activations_factor * parts.activations),
        overhead=round(calibration.activations_factor * parts.overhead),
    )
    reserved = max(memory.total, round(calibration.reserved_factor * estimate.reserved_bytes))
    return replace(
        estimate,
        memory=memory,
        peak_bytes=memory.total,
        peak_bytes_low=round(estimate.peak_bytes_low / estimate.peak_bytes * memory.total),
        peak_bytes_high=round(estimate.peak_bytes_high / estimate.reserved_bytes * reserved),
        reserved_bytes=reserved,
    )


def _short(name: str) -> str:
    """A layer's own name; that of the module where the layer is a parameter of it, as a mixture's router is."""
    return name.removesuffix(".weight").rpartition(".")[2]
