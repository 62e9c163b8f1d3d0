from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rankwise.compare.choice import choose
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.schedule import (
    MOST_ADDED,
    Following,
    Leg,
    Schedule,
    most_rates,
    steps_per_seed,
)
from rankwise.records import Evaluation, Trial, TrialResult

RUNGS = (50, 75, 100)
LEARNT = math.inf  # a loss of rank 0 that every trial is below
Losses = Callable[[Trial, int], float]


def config(ranks: int = 2, rates: int = 2, seeds: int = 2, **changed: object) -> ComparisonConfig:
    return ComparisonConfig(
        train="t.csv",
        ranks=tuple(2**power for power in range(ranks)),
        learning_rates=tuple(1e-4 * 3**power for power in range(rates)),
        seeds=seeds,
        **changed,  # type: ignore[arg-type]
    )


def random_losses(seed: int, diverging: tuple[int, ...] = RUNGS) -> Losses:
    """A loss for every trial and step, the same whenever it is asked for; one in eight trials diverges at some rung."""

    def loss(trial: Trial, step: int) -> float:
        of_trial = random.Random(f"{seed} {trial.id}")
        if of_trial.random() < 1 / 8 and step >= of_trial.choice(diverging):
            return math.nan
        return random.Random(f"{seed} {trial.id} {step}").random()

    return loss


def result(trial: Trial, stop: int, losses: Losses, rungs: tuple[int, ...]) -> TrialResult:
    evaluations = tuple(Evaluation(step, losses(trial, step), 0.5) for step in rungs if step <= stop)
    finite = all(math.isfinite(evaluation.nll) for evaluation in evaluations)
    status = "trained" if stop == rungs[-1] else "dropped"
    return TrialResult(trial, status if finite else "diverged", (0.7,) * stop, evaluations)  # type: ignore[arg-type]


class Run:
    """A comparison whose trials train at once; `legs` are those it took, `trained` the steps of each trial in all."""

    def __init__(
        self,
        config: ComparisonConfig,
        losses: Losses,
        rungs: tuple[int, ...] = RUNGS,
        before: Run | None = None,
        rank_0_nll: float = LEARNT,
        following: Following | None = None,
    ) -> None:
        self.schedule = schedule = Schedule(config, rungs, rank_0_nll, following or {})
        self.results: dict[Trial, TrialResult] = dict(before.results) if before else {}
        self.legs: list[Leg] = []
        self.trained: dict[Trial, int] = {}
        stands: dict[Trial, int] = {}
        while leg := schedule.next_leg(self.results, stands):
            assert len(self.legs) < 100, "the schedule does not end"
            assert {stands.get(trial, 0) for trial in leg.trials} == {leg.start}
            assert set(leg.trials).isdisjoint(schedule.dropped(self.results))
            self.legs.append(leg)
            for trial in leg.trials:
                self.results[trial] = result(trial, leg.stop, losses, rungs)
                stands[trial] = leg.stop
                self.trained[trial] = self.trained.get(trial, 0) + leg.stop - leg.start
            needed = schedule.running(self.results)
            stands = {trial: step for trial, step in stands.items() if trial in needed}
        self.stands = stands
        self.settled = schedule.settled(self.results)
        self.dropped = schedule.dropped(self.results)

    def finalists(self, rank: int) -> set[float]:
        """Rates of a rank all of whose trials are trained to the end."""
        of_rank = [one for one in self.settled.values() if one.trial.rank == rank]
        out = {one.trial.learning_rate for one in of_rank if one.status != "trained"}
        return {one.trial.learning_rate for one in of_rank} - out


counts = st.integers(1, 5)
some_seed = st.integers(0, 10**6)


@given(st.integers(1, 3), counts, st.integers(1, 3), some_seed)
def test_every_rank_ends_with_its_better_rates_and_few_more_than_were_given(
    ranks: int, rates: int, seeds: int, seed: int
) -> None:
    asked = config(ranks, rates, seeds)
    run = Run(asked, random_losses(seed))
    assert run.stands == {}
    for rank in asked.ranks:
        of_rank = [one for trial, one in run.settled.items() if trial.rank == rank]
        tried = {one.trial.learning_rate for one in of_rank}
        assert set(asked.learning_rates) <= tried
        assert len(tried) <= most_rates(asked)
        assert len(of_rank) == len(tried) * seeds
        # A rank has a rate in the end unless each one diverged at a seed.
        lost = {one.trial.learning_rate for one in of_rank if one.status == "diverged"}
        assert bool(run.finalists(rank)) == (lost != tried)


@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), some_seed)
def test_what_is_told_to_be_dropped_is_every_trial_of_the_rates_that_stopped(
    ranks: int, rates: int, seeds: int, seed: int
) -> None:
    run = Run(config(ranks, rates, seeds), random_losses(seed, diverging=RUNGS[:1]))
    stopped = {(trial.rank, trial.learning_rate) for trial, one in run.settled.items() if one.status == "dropped"}
    told = {(trial.rank, trial.learning_rate) for trial in run.dropped}
    assert stopped <= told
    assert {run.settled[trial].status for trial in run.dropped} <= {"dropped", "diverged"}
    assert len(run.dropped) == len(told) * seeds


@given(st.integers(2, 6), st.integers(1, 3), some_seed)
def test_at_a_rung_half_of_the_rates_go_on_and_they_are_the_better_ones(rates: int, seeds: int, seed: int) -> None:
    asked = config(1, rates, seeds)
    run = Run(asked, random_losses(seed))
    (rank,) = asked.ranks
    left = run.schedule.rank_rates(asked, run.results, rank).tried

    def loss(rate: float, step: int) -> float:
        of_rate = [run.results[asked.trial(rank, rate, number)] for number in asked.seed_numbers]
        if any(one.status == "diverged" for one in of_rate):
            return math.inf
        return sum(random_losses(seed)(one.trial, step) for one in of_rate)

    for rung in RUNGS[:-1]:
        best = sorted(left, key=lambda rate: loss(rate, rung))[: math.ceil(len(left) / 2)]
        left = tuple(rate for rate in best if loss(rate, rung) < math.inf) if len(left) > 1 else left
    assert run.finalists(rank) == {rate for rate in left if loss(rate, RUNGS[-1]) < math.inf}


@given(st.integers(1, 3), counts, st.integers(1, 3), some_seed, st.randoms(use_true_random=False))
def test_the_order_of_results_means_nothing(
    ranks: int, rates: int, seeds: int, seed: int, chance: random.Random
) -> None:
    asked = config(ranks, rates, seeds)
    run = Run(asked, random_losses(seed))
    known = {trial: one for trial, one in run.results.items() if chance.random() < 0.8}
    shuffled = list(known.items())
    chance.shuffle(shuffled)
    kept = [trial for trial in known if chance.random() < 0.5]
    assert run.schedule.next_leg(known, kept) == run.schedule.next_leg(dict(shuffled), set(kept))


@given(st.integers(1, 3), counts, st.integers(1, 3), some_seed, st.sampled_from([(100,), (50, 100), RUNGS]))
def test_without_a_diverged_trial_every_step_is_taken_once_and_their_number_is_foretold(
    ranks: int, rates: int, seeds: int, seed: int, rungs: tuple[int, ...]
) -> None:
    asked = config(ranks, rates, seeds)
    run = Run(asked, lambda trial, step: random.Random(f"{seed} {trial.id} {step}").random(), rungs)
    for rank in asked.ranks:
        tried = {trial.learning_rate for trial in run.settled if trial.rank == rank}
        taken = sum(steps for trial, steps in run.trained.items() if trial.rank == rank)
        assert taken == seeds * steps_per_seed(len(tried), rungs)
    assert all(steps == len(run.results[trial].train_nll) for trial, steps in run.trained.items())


@given(
    *(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
    st.sampled_from(["ranks", "rates", "seeds"]),
    some_seed,
    st.sampled_from([LEARNT, 0.4]),
    st.sampled_from([{}, {1: "alone"}, {1: "beside"}]),
)
def test_a_run_that_was_smaller_ends_where_a_fresh_one_does(
    ranks: int, rates: int, seeds: int, more: str, seed: int, rank_0_nll: float, following: Following
) -> None:
    assume(ranks > 1 or not following)
    losses = random_losses(seed, diverging=RUNGS[:1])
    small = config(ranks, rates, seeds)
    large = config(ranks + (more == "ranks"), rates + (more == "rates"), seeds + (more == "seeds"))
    before = Run(small, losses, rank_0_nll=rank_0_nll, following=following)
    fresh = Run(large, losses, rank_0_nll=rank_0_nll, following=following)
    extended = Run(large, losses, before=before, rank_0_nll=rank_0_nll, following=following)

    def ends(run: Run) -> dict[Trial, tuple[str, float]]:
        return {trial: (one.status, one.validation_nll) for trial, one in run.settled.items()}

    assert ends(extended) == ends(fresh)
    at_the_end = {trial for trial, one in before.results.items() if one.status == "trained"}
    assert at_the_end.isdisjoint(extended.trained)


@given(counts, st.integers(1, 3), some_seed, st.sampled_from([LEARNT, 0.4]))
def test_a_rank_that_follows_is_trained_at_the_largest_ones_best_rate_alone(
    rates: int, seeds: int, seed: int, rank_0_nll: float
) -> None:
    asked = config(3, rates, seeds)
    run = Run(asked, random_losses(seed), rank_0_nll=rank_0_nll, following={1: "alone", 2: "alone"})
    of_the_largest = [one.validation_nll for trial, one in run.settled.items() if trial.rank == 4]
    followed = {trial for trial in run.settled if trial.rank != 4}
    if not run.finalists(4):
        assert followed == set()
        return
    best = choose(replace(asked, ranks=(4,)), run.settled, rank_0_nll).by_rank[4][0].learning_rate
    assert followed == {asked.trial(rank, best, number) for rank in (1, 2) for number in asked.seed_numbers}
    assert {run.trained[trial] for trial in followed} == {RUNGS[-1]}
    alone = Run(replace(asked, ranks=(4,)), random_losses(seed), rank_0_nll=rank_0_nll)
    assert of_the_largest == [one.validation_nll for one in alone.settled.values()]


@given(st.integers(2, 5), st.integers(1, 3), some_seed, st.sampled_from([LEARNT, 0.4]))
def test_a_rank_that_followed_keeps_that_rate_beside_its_own(
    rates: int, seeds: int, seed: int, rank_0_nll: float
) -> None:
    asked, losses = config(2, rates, seeds), random_losses(seed, diverging=RUNGS[:1])
    alone = Run(asked, losses, rank_0_nll=rank_0_nll, following={1: "alone"})
    run = Run(asked, losses, before=alone, rank_0_nll=rank_0_nll, following={1: "beside"})
    own, tried = (
        {trial.learning_rate for trial in one.settled if trial.rank == 1}
        for one in (Run(asked, losses, rank_0_nll=rank_0_nll), run)
    )
    led = {trial.learning_rate for trial in alone.settled if trial.rank == 1}
    assert tried == own | led
    lost = any(one.status == "diverged" for trial, one in alone.settled.items() if trial.rank == 1)
    assert (led <= run.finalists(1)) == (not lost or not led)
    assert set(run.trained).isdisjoint(trial for trial in alone.settled if trial.rank == 1)
    if led and not lost:
        before, after = (choose(replace(asked, ranks=(1,)), one.settled, LEARNT) for one in (alone, run))
        means = [fmean(one.validation_nll for one in choice.trained(1)) for choice in (before, after)]
        assert means[1] <= means[0]


def test_a_rank_follows_under_the_first_scaling_alone() -> None:
    asked = config(2, 2, 1, scalings=("alpha/rank", "rslora"))
    run = Run(asked, optimum_at(1e-4), following={1: "alone"})
    rates = {
        scaling: {t.learning_rate for t in run.settled if (t.rank, t.use_rslora) == (1, scaling)}
        for scaling in (False, True)
    }
    assert (len(rates[False]), len(rates[True])) == (1, 3)


def optimum_at(best: float) -> Losses:
    """Losses that grow with the distance of a learning rate from the best one, on a scale of ratios."""
    return lambda trial, step: abs(math.log(trial.learning_rate / best)) / step


@pytest.mark.parametrize(
    ("given_rates", "best", "tried"),
    [
        ((3e-4, 1e-3, 3e-3), 1e-3, (3e-4, 1e-3, 3e-3)),
        ((3e-4, 1e-3), 1.5e-3, (3e-4, 1e-3, 0.00333)),
        ((3e-4, 1e-3), 3e-3, (3e-4, 1e-3, 0.00333, 0.0111)),
        ((3e-4, 1e-3), 1.0, (3e-4, 1e-3, 0.00333, 0.0111)),
        ((3e-4, 1e-3, 2e-3), 1e-9, (2.7e-05, 9e-05, 3e-4, 1e-3, 2e-3)),
        ((3e-4, 1e-3, 2e-3), 1.0, (3e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
        ((1e-3,), 1.0, (1e-3,)),
        ((0.00100401, 0.00100402), 1.0, (0.00100401, 0.00100402)),
    ],
)
def test_a_rank_whose_best_rate_is_at_the_edge_gets_one_beyond_it(
    given_rates: tuple[float, ...], best: float, tried: tuple[float, ...]
) -> None:
    asked = replace(config(1), learning_rates=given_rates)
    run = Run(asked, optimum_at(best))
    assert run.schedule.rank_rates(asked, run.results, asked.ranks[0]).tried == tried
    assert len(tried) <= len(given_rates) + MOST_ADDED


def test_a_rate_that_diverges_is_the_edge_and_the_one_below_is_within() -> None:
    asked = replace(config(1), learning_rates=(3e-4, 1e-3))
    stable = optimum_at(1.0)
    run = Run(asked, lambda trial, step: math.nan if trial.learning_rate > 1e-3 else stable(trial, step))
    assert run.schedule.rank_rates(asked, run.results, asked.ranks[0]).tried == (3e-4, 1e-3, 0.00333)
    assert run.finalists(asked.ranks[0]) == {1e-3}


def test_where_every_rate_diverges_lower_ones_are_tried() -> None:
    asked = replace(config(1), learning_rates=(1e-1, 1.0))
    run = Run(asked, lambda trial, step: math.nan if trial.learning_rate > 0.05 else 0.5)
    assert run.finalists(asked.ranks[0]) <= {0.01, 0.001}
    assert run.finalists(asked.ranks[0])


def test_the_next_best_rate_goes_on_where_the_best_diverges_later() -> None:
    """The half that went on is no use if it is lost after the rung."""
    asked = replace(config(1), learning_rates=(1e-4, 1e-3, 1e-2, 1e-1))
    early = optimum_at(1e-2)
    run = Run(asked, lambda trial, step: math.nan if step > 50 and trial.learning_rate > 5e-4 else early(trial, step))
    assert run.finalists(asked.ranks[0]) == {1e-4}


def test_legs_of_two_ranks_are_trained_together() -> None:
    """Packs are full only where trials, whatever their rank, go the same way."""
    asked = replace(config(2), learning_rates=(1e-4, 1e-3, 1e-2))
    run = Run(asked, optimum_at(1e-3))
    assert [(leg.start, leg.stop, len(leg.trials)) for leg in run.legs] == [(0, 50, 12), (50, 75, 8), (75, 100, 4)]


def test_a_single_rate_that_is_left_trains_to_the_end_without_a_stop() -> None:
    asked = replace(config(1), learning_rates=(1e-3,))
    assert [(leg.start, leg.stop) for leg in Run(asked, optimum_at(1e-3)).legs] == [(0, 100)]


def test_no_rate_is_dropped_before_the_rank_has_learnt_something() -> None:
    """On a plateau all rates are at chance, and which of them is the lowest by a hair says nothing."""
    asked = replace(config(1), learning_rates=(1e-4, 1e-3, 1e-2, 1e-1))

    def plateau_to_step_60(trial: Trial, step: int) -> float:
        if step < 60:
            return 0.7 + abs(math.log(trial.learning_rate / 1e-3)) / 1e3
        return 0.1 if trial.learning_rate == 1e-1 else 0.6

    run = Run(asked, plateau_to_step_60, rank_0_nll=0.69)
    assert [(leg.start, leg.stop, len(leg.trials)) for leg in run.legs] == [(0, 50, 8), (50, 75, 8), (75, 100, 4)]
    assert run.finalists(asked.ranks[0]) == {1e-4, 1e-1}


@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), some_seed)
def test_where_no_trial_ever_beats_rank_0_all_rates_are_trained_but_those_that_diverge(
    ranks: int, rates: int, seeds: int, seed: int
) -> None:
    asked = config(ranks, rates, seeds)
    run = Run(asked, random_losses(seed), rank_0_nll=0.0)
    for rank in asked.ranks:
        of_rank = [one for trial, one in run.settled.items() if trial.rank == rank]
        lost = {one.trial.learning_rate for one in of_rank if one.status == "diverged"}
        assert run.finalists(rank) == {one.trial.learning_rate for one in of_rank} - lost
