"""The model that estimates are made of: looked up and built once, and each of its training steps followed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from rankwise.base.shapes import head_modules, is_causal, linear_layers, match_targets, model_positions
from rankwise.base.source import find_config
from rankwise.errors import UserError
from rankwise.memory.build import adapt, give_storage, meta_step_model
from rankwise.memory.closed_form import closed_form
from rankwise.memory.cuda import LARGER_WORKSPACE_BYTES, WORKSPACE_BYTES, reserved_bytes, rounded
from rankwise.memory.formula import adapted_layers
from rankwise.memory.settings import Method, StepSettings
from rankwise.memory.simulate import Unsimulated, fake_tensors, trace_step
from rankwise.memory.trace import Trace, on_the_line
from rankwise.records import Calibration, LayerGroup, MemoryEstimate, MemoryParts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What the published measurements of benchmarks/memory lie between: allocated bytes, and reserved ones, as simulated.
_SIMULATED = (0.98, 1.02)
# The formula knows neither the model's code nor the allocator.
_FORMULA = (0.75, 1.35)
_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31)


class Subject:
    """A model and the layers to adapt, and the estimates of its training steps.

    Not every step is followed: one of full fine-tuning and one of a single rank tell of all ranks, and steps of two
    batches tell of all batches.
    """

    def __init__(
        self, model: str | Path | PreTrainedConfig, targets: str | Sequence[str], method: Method, pack_size: int = 0
    ) -> None:
        self.config = find_config(model) if isinstance(model, str | Path) else model
        self.targets = targets
        self.method = method
        self.pack_size = pack_size
        self.notes: tuple[str, ...] = ()
        # Shapes are the same in every dtype.
        self.model = meta_step_model(self.config, StepSettings())
        self.trained = () if is_causal(self.config) else head_modules(self.model)
        self.layers = linear_layers(self.model)
        self.adapted = adapted_layers(self.model, targets, trained=self.trained)
        self.total_params: int = sum(parameter.numel() for parameter in self.model.parameters())
        self.calibration: Calibration | None = None
        self.workspace_bytes = WORKSPACE_BYTES
        self._known: dict[tuple[int | None, StepSettings, int], MemoryEstimate] = {}
        self._traces: dict[tuple[int | None, StepSettings], Trace] = {}

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
        heads = (self.model.get_submodule(name) for name in self.trained)
        in_full: int = sum(parameter.numel() for head in heads for parameter in head.parameters())
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
        positions = model_positions(self.model)
        if positions is not None and settings.seq_len > positions:
            raise UserError(f"seq-len {settings.seq_len}: the model has positions for {positions} tokens")
        if self.method == "simulate":
            try:
                return self._simulated(rank, settings)
            except Unsimulated as error:
                self.method = "formula"
                self.notes = (f"{error}: the figures are those of the formula, which is rough",)
        return self._computed(rank, settings)

    def step_model(self, rank: int | None, settings: StepSettings) -> nn.Module:
        """The model that a step trains, on the meta device."""
        model = meta_step_model(self.config, settings)
        return model.requires_grad_(True) if rank is None else adapt(model, rank, self.targets, settings)

    def _simulated(self, rank: int | None, settings: StepSettings) -> MemoryEstimate:
        trace = self._trace(rank, settings).with_workspaces(self.workspace_bytes).repeated()
        peak = trace.peak(rounded)
        of = peak.bytes_by_kind
        memory = MemoryParts(
            base_weights=of["base_weights"] + (of["adapter_weights"] if rank is None else 0),
            adapter_weights=0 if rank is None else of["adapter_weights"],
            gradients=of["gradients"],
            optimizer_states=of["optimizer_states"],
            activations=of["activations"],
            overhead=of["temporaries"],
        )
        most = reserved_bytes(trace.with_workspaces(LARGER_WORKSPACE_BYTES))
        return self._between(rank, memory, _SIMULATED, reserved_bytes(trace), most, peak.place)

    def _trace(self, rank: int | None, settings: StepSettings) -> Trace:
        known = self._traces.get((rank, settings))
        if known is None:
            known = (
                self._between_batches(rank, settings)
                or self._of_another_rank(rank, settings)
                or self._followed(rank, settings)
            )
            self._traces[rank, settings] = known
        return known

    def _between_batches(self, rank: int | None, settings: StepSettings) -> Trace | None:
        """From two known steps that differ from this one in the batch alone."""
        # One row alone is not padded, and a chunked loss comes in chunks.
        if settings.batch_size == 1 or settings.loss == "chunked":
            return None
        known = {
            other.batch_size: trace
            for (of_rank, other), trace in self._traces.items()
            if of_rank == rank and other.batch_size > 1 and replace(other, batch_size=settings.batch_size) == settings
        }
        if len(known) < 2:
            return None
        (first_at, first), (second_at, second), *_ = known.items()
        return on_the_line(first_at, first, second_at, second, settings.batch_size)

    def _of_another_rank(self, rank: int | None, settings: StepSettings) -> Trace | None:
        """From the step of a rank that is told from all other dimensions, as full fine-tuning shows them."""
        full = self._traces.get((None, replace(settings, quantize="none")))
        # A dimension of 1 may be laid out otherwise, 8-bit states come in blocks, and packs do not train in full.
        if rank is None or rank == 1 or full is None or settings.optimizer == "adamw-8bit" or self.pack_size:
            return None
        sizes = full.dimensions
        told = next((prime for prime in _PRIMES if all(size % prime for size in sizes)), None)
        if told is None:
            return None
        if (told, settings) not in self._traces:
            self._traces[told, settings] = self._followed(told, settings)
        return self._traces[told, settings].at_rank(rank, told)

    def _followed(self, rank: int | None, settings: StepSettings) -> Trace:
        if rank is not None and self.pack_size:
            # It brings the training loop and what that reads data with, which takes a second to import.
            from rankwise.memory.pack import pack_of, simulate_pack

            base, trials, training = pack_of(self.config, rank, self.pack_size, settings)
            targets = match_targets(base.model, self.targets, trained=base.trained_modules)
            return simulate_pack(base, trials, targets, training, settings.seq_len, cuda=True)
        # On experts PEFT turns autocast off by the name of the device, which torch does not know for meta.
        meta = not settings.autocast and set(self.adapted) <= set(self.layers)
        model = self.step_model(rank, settings)
        with fake_tensors(cuda=True, meta=meta) as device:
            give_storage(model, device)
            return trace_step(model, settings, device, workspace_bytes=WORKSPACE_BYTES)

    def _computed(self, rank: int | None, settings: StepSettings) -> MemoryEstimate:
        text = self.config.get_text_config()
        memory = closed_form(
            self.layers,
            self.adapted,
            total_params=self.total_params,
            trainable_params=self.trainable_params(rank),
            hidden_size=text.hidden_size,
            vocabulary=text.vocab_size if is_causal(self.config) else 0,
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
