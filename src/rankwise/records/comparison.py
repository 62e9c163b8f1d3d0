"""The records of a comparison. Losses are negative log-likelihoods, in nats per example."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from rankwise.records.plain import plain

if TYPE_CHECKING:
    import numpy as np
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


class Scores(NamedTuple):
    """What trials make of examples, arrays of (trials, examples).

    `nll` is that of the class, or the mean over the learned tokens; `correct` is 1 or 0 for the class or a whole
    completion, or the share of learned tokens that are the model's first choice; `predicted` is the class, None
    where tokens are learned.
    """

    nll: np.ndarray
    correct: np.ndarray
    predicted: np.ndarray | None


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

    `accuracy` and `nll` are means over seeds and test examples (in instruction tuning of each example's mean over its
    learned tokens, and there are no classes for `macro_f1` and `mcc`); the limits are 95 %, over seeds and
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
    macro_f1: float | None
    mcc: float | None
    training_time_seconds: float
    peak_memory_bytes: int | None
    seeds: int
    verdict: Verdict
    difference: float
    difference_low: float | None
    difference_high: float | None


@dataclass(frozen=True)
class Baseline:
    """Rank 0: the frozen base model with its head fitted to convergence, or a language model as it is."""

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
    follow those of the first. `accuracy_of` says what accuracies are shares of.
    """

    run: Path
    model: str
    task: str
    accuracy_of: Literal["examples", "tokens", "completions"]
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
            "accuracy_of": self.accuracy_of,
        }
        return {name: plain(value) for name, value in document.items()}
