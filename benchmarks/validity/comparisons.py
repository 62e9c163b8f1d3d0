"""The comparisons whose truth is known, as jobs, and how they are decided."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.validity.jobs import Arrays
from benchmarks.validity.plants import Sizes, coin_task, frozen_transformer, headless, planted_task, targets_of
from benchmarks.validity.trainings import RANKS, Design, train_ranks, untrained_losses
from rankwise.decide.verdict import Decision, Margin, decide
from rankwise.train.baseline import fit_baseline

MARGIN = Margin(keep=0.95)
_SEEDS_APART = 1000  # comparisons that shared a seed would share the adapters' initial values


@dataclass(frozen=True)
class Planted:
    """A frozen transformer, a teacher of known rank above it, and students of every rank.

    Nothing is shared by two numbers: the frozen weights, the teacher, the examples and the seeds are
    drawn anew for each, so that outcomes are independent.
    """

    number: int
    rank: int
    validation: int
    test: int
    design: Design

    @property
    def name(self) -> str:
        return f"rank-{self.rank}-plant-{self.number}-steps-{self.design.steps}"

    def run(self) -> Arrays:
        base = headless(frozen_transformer(self.number))
        sizes = Sizes(self.design.examples, self.validation, self.test)
        task, targets = planted_task(base, self.rank, sizes, self.number), targets_of(base)
        trained = train_ranks(base, task, targets, self.design, first_seed=self.number * _SEEDS_APART)
        return trained | {"baseline": untrained_losses(base, task, targets)}


@dataclass(frozen=True)
class Coin:
    """Labels that are coin flips; the head is new and trained, and rank 0 is fitted as in the product."""

    number: int
    validation: int
    test: int
    design: Design

    @property
    def name(self) -> str:
        return f"coin-{self.number}-steps-{self.design.steps}"

    def run(self) -> Arrays:
        base = frozen_transformer(self.number, labels=2)
        sizes = Sizes(self.design.examples, self.validation, self.test)
        task, first_seed = coin_task(base, sizes, self.number), self.number * _SEEDS_APART
        trained = train_ranks(base, task, targets_of(base), self.design, first_seed)
        return trained | {"baseline": fit_baseline(base, task, first_seed).test.nll[0]}


def decided(arrays: Arrays) -> Decision:
    """The product's decision on what a job over all ranks returned."""
    return decide(arrays["losses"], arrays["baseline"], ranks=RANKS, margin=MARGIN, validation=arrays["validation"])
