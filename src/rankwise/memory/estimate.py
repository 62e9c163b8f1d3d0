"""What each rank of a model costs: parameters, the memory of a training step, what fits a GPU."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import nn

from rankwise.base.shapes import LinearLayer, head_modules, linear_layers, match_targets, model_positions
from rankwise.base.source import find_config
from rankwise.errors import UserError
from rankwise.memory.build import adapt, can_quantize, give_storage, is_causal, meta_step_model
from rankwise.memory.closed_form import closed_form
from rankwise.memory.cuda import WORKSPACE_BYTES, reserved_bytes, rounded
from rankwise.memory.formula import adapted_layers, check_ranks
from rankwise.memory.settings import DTYPE_BYTES, Method, StepSettings
from rankwise.memory.simulate import Unsimulated, fake_tensors, trace_step
from rankwise.memory.trace import Trace
from rankwise.records import LayerGroup, MemoryEstimate, MemoryParts, ModelEstimate, RankEstimate, TrainingCost

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What the published measurements of benchmarks/memory lie between: allocated bytes, and reserved ones, as simulated.
_SIMULATED = (0.98, 1.02)
# The formula knows neither the model's code nor the allocator.
_FORMULA = (0.75, 1.35)
# What a process holds on a device before it allocates anything: the driver's context and the kernels. It
# differs between devices and versions of CUDA; nvidia-smi shows it.
CUDA_CONTEXT_BYTES = 600 * 2**20
_MOST_ROWS = 2**16


def estimate_training_memory(
    model: str | Path | PreTrainedConfig,
    rank: int | None,
    target_modules: str | Sequence[str] = "all-linear",
    settings: StepSettings | None = None,
    *,
    method: Method = "simulate",
) -> MemoryEstimate:
    """The memory of one training step of a LoRA adapter of this rank, trained by PEFT; None is full fine-tuning.

    A step on fake tensors is taken; nothing is downloaded but a `config.json` that the catalogue does not have.
    `formula` computes it in closed form instead, at once and roughly.

    Raises `UserError` where the model cannot be built, the targets match nothing, no adapted layer has that rank,
    or the sequence is longer than the model has positions for.
    """
    subject = _Subject(model, target_modules, method)
    if rank is not None:
        check_ranks([rank], subject.adapted)
    return subject.memory(rank, settings or StepSettings())


def estimate_ranks(
    model: str | Path | PreTrainedConfig,
    ranks: Sequence[int],
    target_modules: str | Sequence[str] = "all-linear",
    settings: StepSettings | None = None,
    *,
    gpu_bytes: int | None = None,
    method: Method = "simulate",
    pack_size: int = 0,
) -> ModelEstimate:
    """Each rank's cost beside that of full fine-tuning; with the bytes of a GPU also what fits there.

    With a `pack_size` the memory is that of so many adapters of a rank, trained together as `rankwise compare` does,
    on the model that classifies sequences; else of one adapter, trained by PEFT.
    """
    started = time.perf_counter()
    settings = settings or StepSettings()
    ranks = sorted(set(ranks))
    subject = _Subject(model, target_modules, method, pack_size)
    notes = check_ranks(ranks, subject.adapted)
    rows = tuple(_row(subject, rank, ranks, settings, gpu_bytes) for rank in ranks)
    full = _cost(subject, None, settings, gpu_bytes)
    methods: tuple[TrainingCost, ...] = ()
    if gpu_bytes is not None and not pack_size:
        lora = replace(settings, quantize="none")
        qlora = replace(settings, quantize="nf4") if settings.quantize == "none" else settings
        methods = (full, _cost(subject, ranks[0], lora, gpu_bytes))
        if can_quantize():
            methods += (_cost(subject, ranks[0], qlora, gpu_bytes),)
        else:
            notes += ("QLoRA is left out: it needs bitsandbytes, pip install 'rankwise[quant]'",)
    return ModelEstimate(
        model=str(model) if isinstance(model, str | Path) else model.model_type,
        total_params=subject.total_params,
        settings={"method": subject.method, "pack_size": pack_size or None}
        | asdict(settings)
        | {"padding": settings.padded},
        target_modules=target_modules if isinstance(target_modules, str) else tuple(target_modules),
        linear_layers=subject.groups(),
        full_fine_tuning=full,
        ranks=rows,
        methods=methods,
        gpu_bytes=gpu_bytes,
        cuda_context_bytes=CUDA_CONTEXT_BYTES,
        largest_rank_that_fits=max((row.rank for row in rows if row.cost.fits), default=None),
        seconds=time.perf_counter() - started,
        notes=(*notes, *subject.notes),
    )


class _Subject:
    """A model and the layers to adapt, which are looked up once, and the estimates that were made of them."""

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
        self._memory: dict[tuple[int | None, StepSettings], MemoryEstimate] = {}

    def memory(self, rank: int | None, settings: StepSettings) -> MemoryEstimate:
        """Of a step at this rank; None is full fine-tuning, of a model that is not quantised."""
        if rank is None:
            settings = replace(settings, quantize="none")
        known = self._memory.get((rank, settings))
        if known is None:
            known = self._memory[rank, settings] = self._estimated(rank, settings)
        return known

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

    def _trace(self, rank: int | None, settings: StepSettings) -> Trace:
        if rank is not None and self.pack_size:
            # It brings the training loop and what that reads data with, which takes a second to import.
            from rankwise.memory.pack import pack_of, simulate_pack

            base, trials, training = pack_of(self.config, rank, self.pack_size, settings)
            targets = match_targets(base.model, self.targets, trained=base.trained_modules)
            return simulate_pack(base, trials, targets, training, settings.seq_len, cuda=True)
        model: nn.Module = meta_step_model(self.config, settings)
        if rank is None:
            model.requires_grad_(True)
        else:
            model = adapt(model, rank, self.targets, settings)
        # On experts PEFT turns autocast off by the name of the device, which torch does not know for meta.
        meta = not settings.autocast and set(self.adapted) <= set(self.layers)
        with fake_tensors(cuda=True, meta=meta) as device:
            give_storage(model, device)
            return trace_step(model, settings, device)

    def _simulated(self, rank: int | None, settings: StepSettings) -> MemoryEstimate:
        trace = self._trace(rank, settings)
        peak = trace.peak(rounded)
        of = peak.bytes_by_kind
        memory = MemoryParts(
            base_weights=of["base_weights"] + (of["adapter_weights"] if rank is None else 0),
            adapter_weights=0 if rank is None else of["adapter_weights"],
            gradients=of["gradients"],
            optimizer_states=of["optimizer_states"],
            activations=of["activations"],
            overhead=of["temporaries"] + WORKSPACE_BYTES,
        )
        reserved = reserved_bytes(trace) + WORKSPACE_BYTES
        return self._between(rank, memory, _SIMULATED, reserved, peak.place)

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
        return self._between(rank, memory, _FORMULA, memory.total, "")

    def _between(
        self, rank: int | None, memory: MemoryParts, bounds: tuple[float, float], reserved: int, place: str
    ) -> MemoryEstimate:
        return MemoryEstimate(
            rank=rank,
            trainable_params=self.trainable_params(rank),
            memory=memory,
            peak_bytes=memory.total,
            peak_bytes_low=round(bounds[0] * memory.total),
            peak_bytes_high=round(bounds[1] * reserved),
            reserved_bytes=reserved,
            peak_at=place,
        )


def _short(name: str) -> str:
    """A layer's own name; that of the module where the layer is a parameter of it, as a mixture's router is."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _row(
    subject: _Subject, rank: int, ranks: Sequence[int], settings: StepSettings, gpu_bytes: int | None
) -> RankEstimate:
    cost = _cost(subject, rank, settings, gpu_bytes)
    trainable = cost.memory.trainable_params
    return RankEstimate(
        rank=rank,
        alpha=float(rank),
        trainable_percent=100 * trainable / (subject.total_params + trainable),
        compression=subject.total_params / trainable,
        matrix_compression=sum(layer.weights for layer in subject.adapted)
        / sum(layer.lora_params(rank) for layer in subject.adapted),
        adapter_file_bytes=adapter_file_bytes(subject.model, subject.adapted, subject.trained, rank, settings),
        rank_share_of_peak=_rank_share(subject, rank, ranks, settings),
        cost=cost,
    )


def _rank_share(subject: _Subject, rank: int, ranks: Sequence[int], settings: StepSettings) -> float:
    # The peak is a straight line in the rank as long as it occurs at the same place.
    other = next((one for one in ranks if one != rank), 1 if rank > 1 else 2)
    peak, other_peak = (subject.memory(one, settings).peak_bytes for one in (rank, other))
    return max(0.0, rank * (peak - other_peak) / (rank - other) / peak)


def _cost(subject: _Subject, rank: int | None, settings: StepSettings, gpu_bytes: int | None) -> TrainingCost:
    method: Literal["full", "lora", "qlora"] = (
        "full" if rank is None else "lora" if settings.quantize == "none" else "qlora"
    )
    memory = subject.memory(rank, settings)
    if gpu_bytes is None:
        return TrainingCost(method, memory, None, None)
    room = gpu_bytes - CUDA_CONTEXT_BYTES

    def high(batch_size: int) -> int:
        return subject.memory(rank, replace(settings, batch_size=batch_size)).peak_bytes_high

    return TrainingCost(method, memory, memory.peak_bytes_high <= room, largest_batch(high, room, settings.batch_size))


def largest_batch(peak: Callable[[int], int], room: int, start: int) -> int:
    """The largest batch size whose `peak` is at most `room` bytes; 0 where that of 1 is more.

    The peak grows with the batch, and from 2 on nearly in a straight line, which is followed from `start`.

    >>> largest_batch(lambda batch: 100 + 30 * batch, room=1000, start=4)
    30
    """
    fits, too_large = 0, _MOST_ROWS + 1
    batch = max(2, start)
    slope = max(1, peak(batch + 1) - peak(batch))
    while too_large - fits > 1:
        left = room - peak(batch)
        if left >= 0:
            fits = batch
        else:
            too_large = batch
        batch = min(max(batch + left // slope, fits + 1), too_large - 1)
    return fits


def adapter_file_bytes(
    model: nn.Module, adapted: Sequence[LinearLayer], heads: Sequence[str], rank: int, settings: StepSettings
) -> int:
    """The size of PEFT's adapter_model.safetensors: its header and its tensors.

    Source of the layout: the safetensors format, 8 bytes and a header in JSON padded to a multiple of 8. Exact for
    linear layers; of experts PEFT nests the names, which makes a few bytes.
    """
    in_full = [
        (f"{head}.{key}", tuple(parameter.shape))
        for head in heads
        for key, parameter in model.get_submodule(head).named_parameters()
    ]
    factors = [
        entry
        for layer in adapted
        for entry in (
            (f"{layer.name}.lora_A.weight", (layer.experts * layer.rank_factor * rank, layer.d_in)),
            (f"{layer.name}.lora_B.weight", (layer.d_out, layer.experts * layer.rank_factor * rank)),
        )
    ]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The widest type comes first, then the names in order.
    typed = [(settings.adapter_dtype, *entry) for entry in factors] + [(settings.dtype, *entry) for entry in in_full]
    for dtype, name, shape in sorted(typed, key=lambda entry: (-DTYPE_BYTES[entry[0]], entry[1])):
        begin, end = end, end + DTYPE_BYTES[dtype] * math.prod(shape)
        code = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
        header[f"base_model.model.{name}"] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + end
