"""A finished comparison, and what one would take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rankwise.records.plain import plain, record_of
from rankwise.records.recommendation import Metric, Recommendation, Verdict
from rankwise.records.shown import Shown
from rankwise.records.trial import loss_in

if TYPE_CHECKING:
    import pandas as pd

AccuracyOf: TypeAlias = Literal["examples", "tokens", "completions", "choices"]


@dataclass(frozen=True)
class RankExperiment:
    """One rank's row of a comparison, at the learning rate chosen on validation (on a ladder, perhaps for the largest).

    `accuracy` and `nll` are means over seeds and test examples (in instruction tuning of each example's mean over its
    learned tokens, and there are no classes for `macro_f1` and `mcc`); the limits are 95 %, over seeds and
    examples both, and None with fewer than two seeds or where no score differs from another.
    `training_time_seconds` is what training this
    rank alone takes: the median time of its step, times the steps. `peak_memory_bytes` is the peak of
    such a step with the base model in memory, None where the device has no counter.

    `difference` is to the largest rank, in the metric that decides, positive where this rank is better.
    Each of its limits alone is 95 % sure, as the verdict is. `simultaneous_low` and `simultaneous_high` are limits of
    that metric itself which hold for all ranks at once with 95 % (Bonferroni), so that ranks can be looked at together.

    `retained_nll` is of the retained texts, where there are any: the mean of each one's mean over its tokens.
    `forgetting` is by how much that is above rank 0's, with its 95 % limits over seeds and texts both.
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
    simultaneous_low: float | None = None
    simultaneous_high: float | None = None
    retained_nll: float | None = None
    forgetting: float | None = None
    forgetting_low: float | None = None
    forgetting_high: float | None = None


@dataclass(frozen=True)
class Baseline:
    """Rank 0: the frozen base model with its head fitted to convergence, or a language model as it is."""

    accuracy: float
    nll: float
    retained_nll: float | None = None

    def loss(self, metric: Metric) -> float:
        """In the metric that decides; less is better."""
        return loss_in(metric, nll=self.nll, accuracy=self.accuracy)


@dataclass(frozen=True)
class FullFineTuning:
    """All weights trained, the upper end of a comparison; it takes no part in the decision.

    Figures are as in `RankExperiment`, at the learning rate with the lowest validation loss.
    """

    learning_rate: float
    trainable_params: int
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    nll: float
    training_time_seconds: float
    peak_memory_bytes: int | None
    seeds: int
    retained_nll: float | None
    forgetting: float | None
    forgetting_low: float | None
    forgetting_high: float | None


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison would train and what that would take, from a few timed steps of each rank and of a pack.

    `trials` and `packs` are those that it begins with. `training_seconds` is the time of all trials one after another
    where no rank needs more learning rates (but a third where two are given) and their worse half is dropped at every
    rung, `training_seconds_at_most` where every rank needs as many more as it may have and none is dropped; evaluation
    comes on top. `peak_memory_bytes` is that of the largest pack, None where the device has no counter.
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
class RankComparison(Shown):
    """A finished comparison: one experiment a rank, in the order of ranks, beside rank 0, and the answer.

    `adapter` is a PEFT directory: of the recommended rank's trials the one with the lowest validation loss (of all
    chosen trials where no rank is recommended). `alternatives` are the answers under further scalings; their rows
    follow those of the first. `accuracy_of` says what accuracies are shares of. `full` is full fine-tuning, where that
    was asked for. `base` is the base model's dtype, or how its weights are quantised; `over` are the comparisons over
    further ones.
    """

    run: Path
    model: str
    task: str
    accuracy_of: AccuracyOf
    experiments: tuple[RankExperiment, ...]
    baseline: Baseline
    recommendation: Recommendation
    alternatives: tuple[Recommendation, ...]
    wall_seconds: float
    adapter: Path
    notes: tuple[str, ...] = ()
    full: FullFineTuning | None = None
    base: str = "float32"
    over: tuple[RankComparison, ...] = ()

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
            "full": None if self.full is None else dataclasses.asdict(self.full),
            "base": self.base,
            "over": [one.to_dict() for one in self.over],
        }
        return {name: plain(value) for name, value in document.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RankComparison:
        """What `to_dict` was made of; a figure that was not finite is NaN."""
        return record_of(cls, document)
