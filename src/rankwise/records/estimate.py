"""The records of an estimate. Bytes are integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rankwise.records.plain import plain
from rankwise.records.shown import Shown


@dataclass(frozen=True)
class ParameterCount:
    """Trainable parameters: the adapters' own, and those of modules trained in full."""

    adapters: int
    heads: int

    @property
    def total(self) -> int:
        return self.adapters + self.heads


@dataclass(frozen=True)
class MemoryParts:
    """What is in memory at the peak of a training step, in bytes.

    `activations` are the forward pass's tensors that are still held then, `overhead` what the backward pass and the
    optimiser hold for a moment, the kernels' workspaces and the allocator's rounding. Of full fine-tuning
    all weights are `base_weights`.
    """

    base_weights: int
    adapter_weights: int
    gradients: int
    optimizer_states: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class MemoryEstimate(Shown):
    """The memory of one training step; `rank` is None for full fine-tuning.

    `peak_bytes` is what torch would count as allocated, and the sum of `memory`; `peak_bytes_low` and `peak_bytes_high`
    are what it may be in truth. `reserved_bytes` is what the allocator takes from the device for it, fragmentation
    included. A CUDA context comes on top. `peak_at` is the line of the model's code where the peak occurs.
    """

    rank: int | None
    trainable_params: int
    memory: MemoryParts
    peak_bytes: int
    peak_bytes_low: int
    peak_bytes_high: int
    reserved_bytes: int
    peak_at: str


@dataclass(frozen=True)
class LayerGroup:
    """Linear layers of one name and shape, `count` of them; `experts` maps share one parameter in each."""

    name: str
    d_in: int
    d_out: int
    count: int
    experts: int
    adapted: bool


@dataclass(frozen=True)
class TrainingCost:
    """A way to train a model, and the memory of its step: `full`, `lora` or `qlora`, at a rank (None for `full`).

    `fits`: the upper end of the peak and a CUDA context fit the GPU; `largest_batch` is the largest batch size of which
    that is true, 0 for none. Both are None where no GPU was named, and where the formula's peaks are too low to tell.
    """

    method: Literal["full", "lora", "qlora"]
    memory: MemoryEstimate
    fits: bool | None
    largest_batch: int | None


@dataclass(frozen=True)
class RankEstimate:
    """What a rank costs.

    `compression` is all parameters of the base model over the trainable ones, `matrix_compression` the elements of the
    adapted matrices over those of their adapters. `adapter_file_bytes` is the size of PEFT's adapter_model.safetensors.
    `rank_share_of_peak` is the part of the peak that would go with the rank: adapter, gradients and states, and
    what the forward pass keeps for them.
    """

    rank: int
    alpha: float
    trainable_percent: float
    compression: float
    matrix_compression: float
    adapter_file_bytes: int
    rank_share_of_peak: float
    cost: TrainingCost


@dataclass(frozen=True)
class Calibration:
    """What a real step of this rank took on `device`, beside what was estimated for it.

    On CUDA: allocated and reserved bytes, of the second of two steps. On a CPU: the bytes of the step's storages,
    and nothing is reserved. `activations_factor` corrects activations and overhead, the only parts of an estimate that
    are not known to the byte, `reserved_factor` what the allocator reserves.
    """

    device: str
    rank: int
    measured_bytes: int
    estimated_bytes: int
    measured_reserved_bytes: int | None
    estimated_reserved_bytes: int | None
    activations_factor: float
    reserved_factor: float


@dataclass(frozen=True)
class ModelEstimate(Shown):
    """What each rank of a model costs, and full fine-tuning; with a GPU what fits it.

    `settings` are those of the step. `methods` compares full fine-tuning, LoRA and QLoRA at the smallest of the ranks;
    it is empty where no GPU was named. `calibration` is what the estimates were corrected by, if they were.
    """

    model: str
    total_params: int
    settings: Mapping[str, object]
    target_modules: str | tuple[str, ...]
    linear_layers: tuple[LayerGroup, ...]
    full_fine_tuning: TrainingCost
    ranks: tuple[RankEstimate, ...]
    methods: tuple[TrainingCost, ...]
    gpu_bytes: int | None
    cuda_context_bytes: int
    calibration: Calibration | None
    largest_rank_that_fits: int | None
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """What `--json` prints: a rank's cost is spread out in its row."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        document |= {
            "linear_layers": [dataclasses.asdict(group) for group in self.linear_layers],
            "full_fine_tuning": _cost(self.full_fine_tuning),
            "calibration": None if self.calibration is None else dataclasses.asdict(self.calibration),
            "methods": [{"method": cost.method} | _cost(cost) for cost in self.methods],
            "ranks": [
                {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "cost"}
                | _cost(row.cost)
                for row in self.ranks
            ],
        }
        return {name: plain(value) for name, value in document.items()}


def _cost(cost: TrainingCost) -> dict[str, object]:
    return dataclasses.asdict(cost.memory) | {"fits": cost.fits, "largest_batch": cost.largest_batch}
