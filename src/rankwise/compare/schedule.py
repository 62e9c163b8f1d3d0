"""Which learning rates of a rank go on, and which are added: a function of the results so far. Pure.

All trials train to the first rung. There a rank whose best learning rate is the lowest or highest that was
tried for it gets one beyond, up to `MOST_ADDED` times. At each rung but the last the better half of a
rank's rates goes on, once one of them has less loss than rank 0: before that the rank has yet to learn what a
head alone can, as on a plateau, where its rates differ by chance. Halving is sound within a rank only: curves
of different ranks coincide early and separate late (docs/decision.md), so no rank is ever dropped.

A rank that *follows* the largest, under the first scaling, trains at that one's best learning rate alone, to the end at
once, as soon as that is known; or at it beside its own, which are then tried as any rank's, but cannot drop it.

Nothing is remembered between calls. A run that is resumed, or extended by seeds, ranks or learning
rates, replays the schedule on the results that it has, and ends where one that had begun with the larger
configuration does. Two consequences:

- A trial that was dropped and is wanted after all (with more seeds another rate is better) goes on from its
  start, since its training state is gone.
- A rate at which a seed diverges is out, at the rungs before too: the next best goes on in its place. Only
  where that happened after a rung may an extended run, which knows of it, try other rates beyond an
  edge than one that begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal, TypeAlias

from rankwise.compare.config import ComparisonConfig
from rankwise.records import Trial, TrialResult

Results: TypeAlias = Mapping[Trial, TrialResult]
Following: TypeAlias = Mapping[int, Literal["alone", "beside"]]  # which ranks follow, and how

MOST_ADDED = 2  # learning rates of one rank: with the usual factor of 3, a tenth or ten times what was given


@dataclass(frozen=True)
class Leg:
    """Trials that stand at one step and train to another, `stop`."""

    trials: tuple[Trial, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class RankRates:
    """A rank's learning rates, in order of size: those tried, and those left, which train to step `stop`."""

    tried: tuple[float, ...]
    left: tuple[float, ...]
    stop: int


@dataclass(frozen=True)
class Schedule:
    """What a comparison trains next, given its results. `rank_0_nll` is the loss of rank 0 on validation.

    `following` are the ranks that follow the largest.
    """

    config: ComparisonConfig
    rungs: Sequence[int]
    rank_0_nll: float
    following: Following = field(default_factory=dict)

    def next_leg(self, results: Results, resumable: Collection[Trial] = ()) -> Leg | None:
        """What to train next: of the trials that have not come to their rung, those that stand furthest behind.

        `resumable` are the trials whose training state is kept, at their last evaluation; the others begin at 0.
        None where the comparison has all its results. Trials are in the order of seeds, ranks and rates.
        """
        wanted: dict[Trial, tuple[int, int]] = {}
        for one, rank in self._curves():
            rates = self.rank_rates(one, results, rank)
            for trial in _trials(one, rank, rates.left):
                if not _has_come_to(results, trial, rates.stop):
                    start = results[trial].evaluations[-1].step if trial in resumable else 0
                    wanted[trial] = start, rates.stop
        if not wanted:
            return None
        first = min(start for start, _ in wanted.values())
        trials = [trial for trial, (start, _) in wanted.items() if start == first]
        trials.sort(key=lambda trial: (trial.seed, trial.rank, trial.use_rslora, trial.learning_rate))
        return Leg(tuple(trials), first, min(wanted[trial][1] for trial in trials))

    def running(self, results: Results) -> set[Trial]:
        """The trials that are left and not at the end: their training states are needed."""
        left = {
            trial
            for one, rank in self._curves()
            for trial in _trials(one, rank, self.rank_rates(one, results, rank).left)
        }
        return {trial for trial, result in results.items() if result.status == "dropped" and trial in left}

    def dropped(self, results: Results) -> tuple[Trial, ...]:
        """The trials whose learning rates were tried and are out: others did better, or a seed diverged."""
        return tuple(
            trial
            for one, rank in self._curves()
            for rates in (self.rank_rates(one, results, rank),)
            for trial in _trials(one, rank, [rate for rate in rates.tried if rate not in rates.left])
        )

    def settled(self, results: Results) -> dict[Trial, TrialResult]:
        """The results that count once no leg is left.

        A trial that this schedule drops is *dropped* even where the run was a smaller one before and trained it on;
        rates that only the smaller one tried are left out.
        """
        found = {}
        for one, rank in self._curves():
            rates = self.rank_rates(one, results, rank)
            for trial in _trials(one, rank, rates.tried):
                result = results[trial]
                out = result.status == "trained" and trial.learning_rate not in rates.left
                found[trial] = replace(result, status="dropped") if out else result
        return found

    def rank_rates(self, config: ComparisonConfig, results: Results, rank: int) -> RankRates:
        """Where a rank's learning rates stand, under the first scaling of `config`.

        A single one was asked for, so it is neither extended nor compared.
        """
        tried, rungs = config.learning_rates, self.rungs
        follows = self.following.get(rank) if config.scalings == self.config.scalings[:1] else None
        led = () if follows is None else self._best_of_the_largest(config, results)
        if follows == "alone":
            return RankRates(led, led, rungs[-1])
        if len(tried) == 1:
            return RankRates(tried, tried, rungs[-1])

        def losses(rates: Sequence[float], step: int) -> dict[float, float] | None:
            """Each rate's mean over seeds, infinite where one diverged, be it later; None before all are there."""
            if not all(_has_come_to(results, trial, step) for trial in _trials(config, rank, rates)):
                return None
            return {
                rate: fmean(_loss(results[config.trial(rank, rate, seed)], step) for seed in config.seed_numbers)
                for rate in rates
            }

        while True:
            found = losses(tried, rungs[0])
            if found is None:
                return RankRates(tried, tried, rungs[0])
            beyond = _beyond(found)
            if beyond is None or len(tried) == most_rates(config):
                break
            tried = _in_order(tried, (beyond,))

        tried = left = _in_order(tried, led)
        for rung in rungs[:-1]:
            if len(left) <= 1:
                break
            found = losses(left, rung)
            if found is None:
                return RankRates(tried, left, rung)
            better = _kept(found, half=min(found.values()) < self.rank_0_nll)
            left = _in_order(better, [rate for rate in led if found.get(rate, float("inf")) < float("inf")])
        return RankRates(tried, left, rungs[-1])

    def _best_of_the_largest(self, config: ComparisonConfig, results: Results) -> tuple[float, ...]:
        """The learning rate that the largest rank ends best with; none before it has ended, or where all diverged."""
        largest = max(config.ranks)
        rates = self.rank_rates(config, results, largest)
        trials = {rate: list(_trials(config, largest, [rate])) for rate in rates.left}
        ended = all(_has_come_to(results, trial, self.rungs[-1]) for of_rate in trials.values() for trial in of_rate)
        if not ended:
            return ()
        losses = {rate: [results[trial].validation_nll for trial in of_rate] for rate, of_rate in trials.items()}
        best = best_rate(losses, self.rank_0_nll)
        return () if best is None else (best,)

    def _curves(self) -> Iterator[tuple[ComparisonConfig, int]]:
        """Every scaling with every rank: each has learning rates of its own."""
        return ((one, rank) for one in self.config.each_scaling for rank in self.config.ranks)


def best_rate(losses: Mapping[float, Sequence[float]], rank_0_nll: float) -> float | None:
    """The learning rate with the lowest mean of its seeds' validation losses; None where a seed of each diverged.

    A rate at which fewer seeds fail, ending no lower than rank 0 with its `rank_0_nll`, comes first: a mean would hide
    one that a high rate has killed behind others that it has helped.

    >>> best_rate({1e-3: [0.4, 0.5], 2e-3: [0.1, 0.7], 4e-3: [0.1, float("inf")]}, rank_0_nll=0.6)
    0.001
    """
    trained = {rate: of_seeds for rate, of_seeds in losses.items() if max(of_seeds) < float("inf")}

    def failures_and_mean(rate: float) -> tuple[int, float]:
        return sum(loss >= rank_0_nll for loss in trained[rate]), fmean(trained[rate])

    return min(trained, key=failures_and_mean, default=None)


def steps_per_seed(rates: int, rungs: Sequence[int]) -> int:
    """Steps that one seed of a rank takes in all, over its learning rates, if it learns by the first rung.

    >>> steps_per_seed(4, (100, 200, 300, 400)), steps_per_seed(1, (100, 200, 300, 400))
    (800, 400)
    """
    steps = 0
    for start, stop in zip((0, *rungs), rungs, strict=False):
        steps += rates * (stop - start)
        rates = -(-rates // 2)
    return steps


def fewest_rates(config: ComparisonConfig) -> int:
    """How many learning rates a rank will have tried at least: of two, the better one is at an edge."""
    given = len(config.learning_rates)
    return 3 if given == 2 else given


def most_rates(config: ComparisonConfig) -> int:
    """How many learning rates a rank may have tried in the end."""
    given = len(config.learning_rates)
    return given if given == 1 else given + MOST_ADDED


def _trials(config: ComparisonConfig, rank: int, rates: Sequence[float]) -> Iterator[Trial]:
    return (config.trial(rank, rate, seed) for rate in rates for seed in config.seed_numbers)


def _has_come_to(results: Results, trial: Trial, step: int) -> bool:
    result = results.get(trial)
    return result is not None and (result.status == "diverged" or result.evaluations[-1].step >= step)


def _loss(result: TrialResult, step: int) -> float:
    if result.status == "diverged":
        return float("inf")
    return next(evaluation.nll for evaluation in result.evaluations if evaluation.step == step)


def _kept(losses: Mapping[float, float], *, half: bool) -> tuple[float, ...]:
    """The better half of the rates, rounded up, or all; none at which a seed diverged; in order of size."""
    best = sorted(losses, key=lambda rate: (losses[rate], rate))[: -(-len(losses) // 2) if half else None]
    return tuple(sorted(rate for rate in best if losses[rate] < float("inf")))


def _beyond(losses: Mapping[float, float]) -> float | None:
    """A rate beyond the lowest or highest where that is the best (where all diverged: beyond the lowest), else None.

    As far beyond as the two rates at that edge are apart, in three digits; rates that these do not tell apart
    have nothing beyond them.

    >>> _beyond({3e-4: 0.5, 1e-3: 0.4}), _beyond({3e-4: 0.4, 1e-3: 0.5}), _beyond({1.0: 0.3, 2.0: 0.2, 4.0: 0.3})
    (0.00333, 9e-05, None)
    """
    rates = sorted(losses)
    best = min(rates, key=lambda rate: losses[rate])
    if best == rates[0]:
        beyond = _three_digits(best * (best / rates[1]))
        return beyond if beyond < best else None
    if best == rates[-1]:
        beyond = _three_digits(best * (best / rates[-2]))
        return beyond if beyond > best else None
    return None


def _in_order(rates: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted({*rates, *others}))


def _three_digits(rate: float) -> float:
    return float(f"{rate:.3g}")
