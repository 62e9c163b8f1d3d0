"""Frozen records that cross every border of the house; no torch, no logic beyond arithmetic.

Bytes are integers. Losses are natural-log likelihoods (nats) per example.
"""

from __future__ import annotations

import dataclasses
import math
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
class Interval:
    """A mean and its two-sided confidence limits; None where the data allow no limits."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RankExperiment:
    """One rank's row of a comparison, at the learning rate chosen on validation.

    `accuracy` and `nll` are means over seeds and test examples; the limits are 95 %, over seeds and
    examples both, and None with fewer than two seeds or where no score differs from another.
    `training_time_seconds` is what training this
    rank alone takes: the median time of its step, times the steps. `peak_memory_bytes` is the peak of
    such a step with the base model in memory, None where the device has no counter.
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
    training_time_seconds: float
    peak_memory_bytes: int | None
    seeds: int


Verdict: TypeAlias = Literal["sufficient", "underfits", "unresolved"]
Status: TypeAlias = Literal["resolved", "unresolved", "not_plateaued", "no_gain"]


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
    """A finished comparison: one experiment a rank, in the order of ranks, beside rank 0.

    `adapter` is a PEFT directory: of all chosen trials the one with the lowest validation loss.
    """

    run: Path
    model: str
    task: str
    experiments: tuple[RankExperiment, ...]
    baseline: Baseline
    wall_seconds: float
    adapter: Path
    notes: tuple[str, ...] = ()

    def to_pandas(self) -> pd.DataFrame:
        """The experiments, a row each."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(experiment) for experiment in self.experiments])

    def to_dict(self) -> dict[str, object]:
        """What `--json` prints; JSON has no word for a figure that is not finite, so that is None."""
        return {
            "run": str(self.run),
            "model": self.model,
            "task": self.task,
            "experiments": [_finite(dataclasses.asdict(experiment)) for experiment in self.experiments],
            "baseline": _finite(dataclasses.asdict(self.baseline)),
            "wall_seconds": self.wall_seconds,
            "adapter": str(self.adapter),
            "notes": list(self.notes),
        }


def _finite(values: dict[str, object]) -> dict[str, object]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
