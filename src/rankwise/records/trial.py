"""What one adapter's training is, and what it leaves. Losses are negative log-likelihoods, in nats per example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

from rankwise.records.recommendation import Metric

if TYPE_CHECKING:
    import numpy as np

Numbers = TypeVar("Numbers", float, "np.ndarray")


def loss_in(metric: Metric, *, nll: Numbers, accuracy: Numbers) -> Numbers:
    """What decides, as something of which less is better: the NLL, or the share of wrong answers.

    >>> loss_in("accuracy", nll=0.5, accuracy=0.75)
    0.25
    """
    return nll if metric == "nll" else 1 - accuracy


def scaling_of(alpha: float, rank: int, *, use_rslora: bool) -> float:
    """What multiplies B·A: alpha/rank, or alpha/sqrt(rank) when rank-stabilised.

    Sources: Hu et al. 2021, arXiv 2106.09685, section 4.1; Kalajdzievski 2023, arXiv 2312.03732.
    """
    return alpha / (rank**0.5 if use_rslora else rank)


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
        """What multiplies B·A."""
        return scaling_of(self.alpha, self.rank, use_rslora=self.use_rslora)

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

    def loss(self, metric: Metric) -> float:
        """In the metric that decides; less is better."""
        return loss_in(metric, nll=self.nll, accuracy=self.accuracy)


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
