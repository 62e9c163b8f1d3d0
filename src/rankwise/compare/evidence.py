"""What training and validation say of ranks, how two are told apart by it, and the steps that rest on it. Pure.

Decided on training and validation alone; the test split is left for the answer, on the ranks that were trained, but
for the one look that a ladder may take.
Two ranks are told apart by the mean over seeds of their paired difference in validation loss, and only where both its
one-sided limits lie on the same side of the margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

import numpy as np

from rankwise.decide.interval import over_seeds
from rankwise.decide.verdict import CONFIDENCE, Margin
from rankwise.records import Baseline, Metric, StopReason, TrialResult

Outcome: TypeAlias = Literal["worse", "alike", "unclear"]


@dataclass(frozen=True)
class Evidence:
    """What training and validation say of a rank at its learning rate.

    `losses` are the last validation losses in the metric that decides, in the order of seeds. The others are means
    over seeds, in nats: `nll` on validation, `train_nll` over the last tenth of the steps. `rising` tells whether
    validation NLL rose between the last two evaluations.
    """

    losses: tuple[float, ...]
    nll: float
    train_nll: float
    rising: bool

    @classmethod
    def of(cls, results: Sequence[TrialResult], metric: Metric) -> Evidence:
        """From a rank's chosen trials, one a seed."""
        last = [result.evaluations[-1] for result in results]
        before = [result.evaluations[-2:][0] for result in results]
        tails = [result.train_nll[-math.ceil(len(result.train_nll) / 10) :] for result in results]
        nll = fmean(one.nll for one in last)
        return cls(
            losses=tuple(one.loss(metric) for one in last),
            nll=nll,
            train_nll=fmean(fmean(tail) for tail in tails),
            rising=nll > fmean(one.nll for one in before),
        )

    @property
    def loss(self) -> float:
        """The mean over seeds, in the metric that decides."""
        return fmean(self.losses)


@dataclass(frozen=True)
class Scale:
    """What losses are measured by: the metric that decides, the margin, rank 0 on validation, and the loss of `chance`.

    That is the NLL of knowing nothing: of equal odds for classes; of rank 0, a language model, for tokens.
    """

    metric: Metric
    margin: Margin
    baseline: Baseline
    chance: float

    def delta(self, largest: Evidence) -> float:
        """The loss called nothing, in the metric: absolute, or a share of what the largest rank so far gains."""
        if self.margin.absolute is not None:
            return self.margin.absolute
        return (1 - self.margin.keep) * max(0.0, self.baseline.loss(self.metric) - largest.loss)

    def train_delta(self, largest: Evidence) -> float:
        """The same for training losses, which are in nats whatever decides."""
        if self.metric == "nll":
            return self.delta(largest)
        return (1 - self.margin.keep) * max(0.0, self.baseline.nll - largest.nll)

    @property
    def unit(self) -> str:
        return "nats" if self.metric == "nll" else "points"

    def figure(self, value: float) -> str:
        """A loss in the unit; a true minus sign, and none before what is 0 but for rounding."""
        rounded = round(value if self.metric == "nll" else 100 * value, 12) + 0.0
        return f"{rounded:.2g}".replace("-", "−")


def weigh(
    rank: int, largest: int, evidence: Mapping[int, Evidence | None], scale: Scale, *, shortly: bool = False
) -> tuple[Outcome, str]:
    """Whether a rank loses more than the margin to the largest so far, less (gains count), or the data cannot tell.

    And that in a sentence, `shortly` where one about the same largest rank went before it.
    """
    mine, best = evidence[rank], evidence[largest]
    if mine is None or best is None:
        return "unclear", f"{largest if best is None else rank} has no learning rate at which every seed trains"
    loss = over_seeds(np.array(mine.losses) - np.array(best.losses), confidence=2 * CONFIDENCE - 1)
    if loss.low is None or loss.high is None:
        return "unclear", f"{rank} and {largest}: without a spread over seeds nothing is known of chance"
    delta = scale.delta(best)
    size, unit, margin = scale.figure(loss.mean), scale.unit, f"margin {scale.figure(delta)}"
    if loss.low <= delta <= loss.high:
        between = f"{scale.figure(loss.low)} and {scale.figure(loss.high)} {unit}"
        return "unclear", f"{rank} and {largest} cannot be told apart: {rank} loses between {between}, {margin}"
    if loss.high < delta:
        if shortly:
            return "alike", f"{rank} too ({size})"
        size = scale.figure(abs(loss.mean))
        if loss.mean < -delta:
            return "alike", f"{rank} is better than {largest} ({size} {unit}, {margin})"
        return "alike", f"{rank} and {largest} agree ({size} {unit}, {margin})"
    lost = f"{rank} loses {size}" if shortly else f"{rank} loses {size} {unit} to {largest} ({margin})"
    if mine.train_nll - best.train_nll > scale.train_delta(best):
        return "worse", f"{lost}: it underfits"
    return "worse", f"{lost}, but not in training: generalisation or noise"


@dataclass(frozen=True)
class Step:
    """The rank to train next, or why none is; `found` are the sentences that it rests on.

    `looked` tells whether the test split was asked for it, `follows` whether the rank is to follow the largest, as
    schedule.py says.
    """

    found: tuple[str, ...]
    rank: int | None
    stopped: StopReason | None
    looked: bool = False
    follows: bool = False


def path_text(steps: Sequence[Step]) -> str:
    """Everything that the steps found, once and in order, and how they ended.

    >>> steps = [Step(("8 and 16 agree",), 4, None), Step(("8 and 16 agree", "4 loses 0.1"), None, "plateau")]
    >>> path_text(steps)
    '8 and 16 agree → 4 loses 0.1 → stop: plateau'
    """
    found = dict.fromkeys(sentence for step in steps for sentence in step.found)
    last = steps[-1]
    return " → ".join([*found, f"next: {last.rank}" if last.stopped is None else f"stop: {last.stopped}"])
