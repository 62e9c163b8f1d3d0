"""Frozen records that cross every border of the house; no torch, no logic beyond arithmetic.

Bytes are integers. Losses are natural-log likelihoods (nats) per example.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Trial:
    """One adapter's training."""

    rank: int
    alpha: float
    use_rslora: bool
    learning_rate: float
    seed: int

    @property
    def scaling(self) -> float:
        """What multiplies B·A: alpha/rank, or alpha/sqrt(rank) when rank-stabilised.

        Sources: Hu et al. 2021, arXiv 2106.09685, section 4.1; Kalajdzievski 2023, arXiv 2312.03732.
        """
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    @property
    def id(self) -> str:
        """A name that is unique within a run and safe as a file name."""
        rule = "-rs" if self.use_rslora else ""
        return f"r{self.rank}-a{_exact(self.alpha)}{rule}-lr{_exact(self.learning_rate)}-s{self.seed}"


def _exact(number: float) -> str:
    """A number's shortest text that is read back as the same number; whole numbers without `.0`."""
    return repr(float(number)).removesuffix(".0")


TrialStatus: TypeAlias = Literal["trained", "dropped", "diverged"]


@dataclass(frozen=True)
class Evaluation:
    """A trial's validation scores at one step."""

    step: int
    nll: float
    accuracy: float


@dataclass(frozen=True)
class TrialResult:
    """What one trial leaves behind.

    `train_nll` holds the mean loss of each optimiser step, before its update. *trained* means to the last
    step; *dropped*, that it stopped at a rung: other learning rates did better, or were still to be tried;
    *diverged*, that a loss was not finite, or a hundred times both the first one and that of chance.
    """

    trial: Trial
    status: TrialStatus
    train_nll: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def validation_nll(self) -> float:
        """The last validation loss; infinite for a trial that is not trained, so that no rate is chosen for it."""
        return self.evaluations[-1].nll if self.status == "trained" else float("inf")


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
class MemoryEstimate:
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
    that is true, 0 for none. Both are None where no GPU was named.
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
class ModelEstimate:
    """What each rank of a model costs, and full fine-tuning; with a GPU what fits it.

    `settings` are those of the step. `methods` compares full fine-tuning, LoRA and QLoRA at the smallest of the ranks;
    it is empty where no GPU was named.
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
    largest_rank_that_fits: int | None
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """What `--json` prints: a rank's cost is spread out in its row."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        document |= {
            "linear_layers": [dataclasses.asdict(group) for group in self.linear_layers],
            "full_fine_tuning": _cost(self.full_fine_tuning),
            "methods": [{"method": cost.method} | _cost(cost) for cost in self.methods],
            "ranks": [
                {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "cost"}
                | _cost(row.cost)
                for row in self.ranks
            ],
        }
        return {name: _plain(value) for name, value in document.items()}


def _cost(cost: TrainingCost) -> dict[str, object]:
    return dataclasses.asdict(cost.memory) | {"fits": cost.fits, "largest_batch": cost.largest_batch}


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided confidence limits; None where the data allow no limits."""

    mean: float
    low: float | None
    high: float | None


Metric: TypeAlias = Literal["nll", "accuracy"]
Verdict: TypeAlias = Literal["sufficient", "underfits", "unresolved"]
Status: TypeAlias = Literal["resolved", "unresolved", "not_plateaued", "no_gain"]
StopReason: TypeAlias = Literal["plateau", "memory", "data", "budget", "noise", "rank limit"]


@dataclass(frozen=True)
class Needed:
    """Test examples with the seeds there are, or seeds with the examples there are, in all, that would tell.

    With 80 % power to show that the rank in question suffices, if in truth it loses nothing to the reference;
    the other two figures: if it loses half of the margin. None where that alone would not do.
    """

    examples: int | None
    seeds: int | None
    examples_if_half_lost: int | None
    seeds_if_half_lost: int | None


@dataclass(frozen=True)
class Guard:
    """Another metric than the one that decided, at the recommended rank against the largest one.

    `difference` is positive where the recommended rank is better; each limit alone is 95 % sure. `worse` where it loses
    more than the margin's share of what the largest rank gains in this metric.
    """

    metric: str
    difference: float
    low: float | None
    high: float | None
    worse: bool


@dataclass(frozen=True)
class Doubling:
    """What twice the recommended rank would take more; negative figures are the noise of measuring."""

    trainable_params: int
    training_time_seconds: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Recommendation:
    """The answer to "which rank?".

    `rank` is the smallest that was shown to suffice, with what it was trained with; None where no rank
    was shown to gain anything. Only with the status *resolved* is every smaller rank that was tried known to be too
    small. `margin` is in the unit of `metric` and `keep` the same as a share of the largest rank's gain, each None
    where it cannot be told. `holds_for` says what was trained, `growing` whether the largest rank's lead still grew at
    the end. `doubling` is None where twice the rank was not compared. `stopped` says why an escalation trained no
    further rank; None with a grid.
    """

    status: Status
    rank: int | None
    alpha: float | None
    use_rslora: bool | None
    learning_rate: float | None
    target_modules: str | tuple[str, ...]
    margin: float | None
    keep: float | None
    metric: Metric
    reason: str
    needed: Needed | None
    guards: tuple[Guard, ...]
    doubling: Doubling | None
    growing: bool | None
    holds_for: str
    unknown: tuple[str, ...]
    stopped: StopReason | None


@dataclass(frozen=True)
class RankExperiment:
    """One rank's row of a comparison, at the learning rate chosen on validation.

    `accuracy` and `nll` are means over seeds and test examples; the limits are 95 %, over seeds and
    examples both, and None with fewer than two seeds or where no score differs from another.
    `training_time_seconds` is what training this
    rank alone takes: the median time of its step, times the steps. `peak_memory_bytes` is the peak of
    such a step with the base model in memory, None where the device has no counter.

    `difference` is to the largest rank, in the metric that decides, positive where this rank is better.
    Each of its limits alone is 95 % sure, as the verdict is.
    """

    rank: int
    alpha: float
    use_rslora: bool
    learning_rate: float
    trainable_params: int
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    nll: float
    macro_f1: float
    mcc: float
    training_time_seconds: float
    peak_memory_bytes: int | None
    seeds: int
    verdict: Verdict
    difference: float
    difference_low: float | None
    difference_high: float | None


@dataclass(frozen=True)
class Baseline:
    """Rank 0: the frozen base model with its head fitted to convergence."""

    accuracy: float
    nll: float


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison would train and what that would take, from a few timed steps of each rank.

    `trials` and `packs` are those that it begins with. `training_seconds` is the time of all steps one after
    another where the given learning rates are enough, `training_seconds_at_most` where every rank needs as
    many more as it may have; evaluation comes on top. `peak_memory_bytes` is that of the largest pack,
    None where the device has no counter.
    """

    trials: int
    packs: int
    steps: int
    training_seconds: float
    training_seconds_at_most: float
    peak_memory_bytes: int | None
    disk_bytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """What `--plan --json` prints."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class RankComparison:
    """A finished comparison: one experiment a rank, in the order of ranks, beside rank 0, and the answer.

    `adapter` is a PEFT directory: of the recommended rank's trials the one with the lowest validation loss (of all
    chosen trials where no rank is recommended). `alternatives` are the answers under further scalings; their rows
    follow those of the first.
    """

    run: Path
    model: str
    task: str
    experiments: tuple[RankExperiment, ...]
    baseline: Baseline
    recommendation: Recommendation
    alternatives: tuple[Recommendation, ...]
    wall_seconds: float
    adapter: Path
    notes: tuple[str, ...] = ()

    def to_pandas(self) -> pd.DataFrame:
        """The experiments, a row each."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(experiment) for experiment in self.experiments])

    def to_dict(self) -> dict[str, object]:
        """What `--json` prints; JSON has no word for a figure that is not finite, so that is None."""
        document = {
            "run": str(self.run),
            "model": self.model,
            "task": self.task,
            "experiments": [dataclasses.asdict(experiment) for experiment in self.experiments],
            "baseline": dataclasses.asdict(self.baseline),
            "wall_seconds": self.wall_seconds,
            "adapter": str(self.adapter),
            "notes": self.notes,
            "recommendation": dataclasses.asdict(self.recommendation),
            "alternatives": [dataclasses.asdict(alternative) for alternative in self.alternatives],
        }
        return {name: _plain(value) for name, value in document.items()}


def _plain(value: object) -> object:
    """`value` as it is read back from JSON."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
