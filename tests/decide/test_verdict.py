"""The rule on losses whose truth is known, its invariances, and inputs that nobody meant to give.

benchmarks/validity measures error rates and coverage on many more data sets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.decide.interval import crossed_interval
from rankwise.decide.verdict import Decision, Margin, decide, shortfall
from rankwise.records import Interval
from tests.decide.simulated import comparison

RANKS = (2, 4, 8, 16)
KEEP_95 = Margin(keep=0.95)


def decided(excess: tuple[float, ...], *, seed: int = 0, margin: Margin = KEEP_95, **simulated: Any) -> Decision:
    losses, baseline = comparison(np.random.default_rng(seed), excess, **simulated)
    return decide(losses, baseline, ranks=RANKS[-len(excess) :], margin=margin, resamples=200)


def verdicts(decision: Decision) -> list[str]:
    return [verdict.verdict for verdict in decision.verdicts]


def test_the_smallest_rank_that_keeps_the_gain_is_found() -> None:
    decision = decided((0.2, 0.1, 0.0, 0.0))
    assert (decision.status, decision.rank) == ("resolved", 8)
    assert verdicts(decision) == ["underfits", "underfits", "sufficient", "sufficient"]
    assert decision.needed is None
    assert decision.gain.mean == pytest.approx(0.5, abs=0.02)
    assert decision.margin == pytest.approx(0.05 * decision.gain.mean)
    assert decision.keep == pytest.approx(0.95)


def test_where_all_suffice_the_smallest_is_the_answer() -> None:
    decision = decided((0.0, 0.0, 0.0, 0.0))
    assert (decision.status, decision.rank) == ("resolved", 2)


def test_a_next_rank_that_underfits_asks_for_a_larger_one() -> None:
    decision = decided((0.3, 0.2, 0.1, 0.0))
    assert (decision.status, decision.rank) == ("not_plateaued", 16)
    assert verdicts(decision) == ["underfits", "underfits", "underfits", "sufficient"]


def test_two_ranks_of_which_the_smaller_underfits_ask_for_a_larger_one() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.2, 0.0))
    assert decide(losses, baseline, ranks=(4, 8)).status == "not_plateaued"


def test_nothing_learnt_is_no_answer_about_ranks() -> None:
    decision = decided((0.0, 0.0, 0.0, 0.0), gain=0.0)
    assert (decision.status, decision.rank, decision.margin) == ("no_gain", None, None)
    assert set(verdicts(decision)) == {"unresolved"}


def test_a_reference_that_fails_where_another_gains_is_not_called_no_gain() -> None:
    decision = decided((-0.3, -0.3, -0.3, 0.0), gain=0.0)
    assert (decision.status, decision.rank) == ("unresolved", None)
    assert decision.better == (2, 4, 8)


def test_few_data_leave_ranks_unresolved_and_not_small_ones_recommended() -> None:
    decision = decided((0.0, 0.0, 0.0, 0.0), examples=20, seeds=2, of_seeds=0.02)
    assert (decision.status, decision.rank) == ("unresolved", 16)
    assert verdicts(decision) == ["unresolved", "unresolved", "unresolved", "sufficient"]


@pytest.mark.parametrize(("what", "there", "of_all"), [("seeds", 5, (5, 1)), ("examples", 200, (1, 200))])
def test_more_is_needed_to_show_a_rank_that_loses_half_of_the_margin(
    what: str, there: int, of_all: tuple[int, int]
) -> None:
    drawn = np.random.default_rng(1)
    chance = drawn.normal(0.0, 1.0, of_all) + drawn.normal(0.0, 0.1, (5, 200))
    reference = drawn.normal(1.0, 0.1, (5, 200))
    limit = crossed_interval(chance, confidence=0.9).high
    assert limit is not None
    losses = np.stack([reference + chance - chance.mean(), reference])
    margin = 0.9 * (limit - chance.mean())
    needed = decide(losses, np.full(200, 20.0), ranks=(4, 8), margin=Margin(absolute=margin)).needed
    assert needed is not None
    assert there < getattr(needed, what) < getattr(needed, f"{what}_if_half_lost")


def test_nothing_below_an_unresolved_rank_is_called_sufficient() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.0, 0.0, 0.0, 0.0))
    losses[2] += 0.2 * np.random.default_rng(1).normal(size=(5, 1))  # seeds that differ wildly at rank 8
    decision = decide(losses, baseline, ranks=RANKS)
    assert verdicts(decision) == ["unresolved", "unresolved", "unresolved", "sufficient"]
    assert (decision.status, decision.rank) == ("unresolved", 16)


def test_nothing_above_a_rank_that_is_not_shown_to_underfit_is_called_too_small() -> None:
    """Otherwise one of many small ranks would be called too small by chance."""
    losses, baseline = comparison(np.random.default_rng(0), (0.1, 0.1, 0.1, 0.0))
    losses[0] += 0.3 * np.random.default_rng(1).normal(size=(5, 1))
    assert verdicts(decide(losses, baseline, ranks=RANKS)) == ["unresolved", "unresolved", "unresolved", "sufficient"]


def test_a_middle_rank_that_beats_the_reference_is_told() -> None:
    decision = decided((0.1, -0.1, 0.0, 0.0))
    assert decision.better == (4,)
    assert (decision.status, decision.rank) == ("resolved", 4)


def test_what_is_recommended_suffices_beside_a_better_rank_than_the_reference_too() -> None:
    """Rank 2 loses nothing to 16, which is unfairly trained, and 0.2 nats to 4."""
    decision = decided((0.0, -0.2, 0.0, 0.0))
    assert (decision.status, decision.rank, decision.better) == ("unresolved", 4, (4,))
    assert set(verdicts(decision)) == {"sufficient"}
    level = decided((-0.1, -0.1, 0.0, 0.0), examples=4000)
    assert (level.status, level.rank, level.better) == ("resolved", 2, (2, 4))


@pytest.mark.parametrize(
    ("missing", "resolved"), [((), True), ((2,), True), ((6,), False), ((2, 6), False), ((32,), True)]
)
def test_a_rank_without_losses_next_below_the_answer_leaves_it_open(missing: tuple[int, ...], resolved: bool) -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.2, 0.0, 0.0))
    decision = decide(losses, baseline, ranks=(4, 8, 16), missing=missing)
    assert (decision.status, decision.rank) == ("resolved" if resolved else "unresolved", 8)
    assert decision.missing == missing


@pytest.mark.parametrize(("lead", "told"), [(1.02, True), (0.98, False)])
@pytest.mark.parametrize(("others", "alone"), [(1, 0.95), (2, 0.975)])
def test_which_ranks_beat_the_reference_is_sure_for_all_of_them_together(
    lead: float, told: bool, others: int, alone: float
) -> None:
    """Of two ranks that are held against the reference each limit is 97.5 % sure, by Bonferroni's inequality."""
    drawn = np.random.default_rng(0)
    reference = drawn.normal(1.0, 0.1, (5, 200))
    chance = drawn.normal(0.0, 0.1, (5, 200))
    chance -= chance.mean()
    limit = crossed_interval(chance, confidence=2 * alone - 1).high
    assert limit is not None
    losses = [reference - chance - lead * limit, reference + 0.01 * chance, reference]
    decision = decide(np.stack([losses[0], *losses[3 - others :]]), np.full(200, 2.0), ranks=(2, 4, 8)[: others + 1])
    assert (decision.better == (2,)) is told


def test_a_margin_may_be_given_in_the_unit_of_the_losses() -> None:
    decision = decided((0.2, 0.04, 0.0, 0.0), margin=Margin(absolute=0.06))
    assert (decision.status, decision.rank, decision.margin) == ("resolved", 4, 0.06)
    assert decision.keep == pytest.approx(1 - 0.06 / decision.gain.mean)
    assert decided((0.2, 0.04, 0.0, 0.0)).rank == 8


def test_a_small_sufficient_rank_is_not_the_answer_while_the_larger_one_still_draws_away() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.1, 0.0, 0.0, 0.0))
    curves = np.full((4, 5, 3), 0.5)
    curves[3, :, 2] -= 0.02 + 0.001 * np.arange(5)  # rank 16 left the others since the last evaluation but one
    growing = decide(losses, baseline, ranks=RANKS, validation=curves)
    assert (growing.status, growing.rank, growing.growing) == ("unresolved", 4, True)
    curves[3, :, 1] = curves[3, :, 2] - 0.0001 * np.arange(5)  # it left them earlier, and comes back a little
    still = decide(losses, baseline, ranks=RANKS, validation=curves)
    assert (still.status, still.rank, still.growing) == ("resolved", 4, False)


@pytest.mark.parametrize(
    ("seeds", "examples"), [(1, 400), (5, 1), (1, 1)], ids=["one seed", "one example", "one of each"]
)
def test_no_claim_is_made_from(seeds: int, examples: int) -> None:
    decision = decided((0.3, 0.0, 0.0, 0.0), seeds=seeds, examples=examples)
    assert (decision.status, decision.rank, decision.needed) == ("unresolved", None, None)
    assert decision.gain.low is None
    assert set(verdicts(decision)) == {"unresolved"}


def test_one_rank_alone_has_nothing_to_be_compared_with() -> None:
    decision = decided((0.0,))
    assert (decision.status, decision.rank, verdicts(decision)) == ("unresolved", 16, ["sufficient"])


def test_losses_without_any_variance_are_no_evidence() -> None:
    """Ten examples that are all right at two ranks do not show that the ranks never differ by a point."""
    losses, baseline = np.zeros((2, 3, 10)), np.arange(10) % 2 / 1.0
    decision = decide(losses, baseline, ranks=(4, 8), margin=Margin(absolute=0.01))
    assert (decision.status, decision.rank) == ("unresolved", 8)
    assert verdicts(decision) == ["unresolved", "sufficient"]
    # Nor where the margin is a share of a gain that varies.
    assert decide(losses, baseline, ranks=(4, 8)).status == "unresolved"
    constant = decide(np.full((2, 3, 10), 0.5), np.full(10, 0.7), ranks=(4, 8))
    assert (constant.status, constant.rank, set(verdicts(constant))) == ("unresolved", None, {"unresolved"})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_refused_by_rank(value: float) -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.0, 0.0))
    losses[0, 1, 7] = value
    with pytest.raises(ValueError, match="a loss of rank 4 is not finite"):
        decide(losses, baseline, ranks=(4, 8))
    with pytest.raises(ValueError, match="a loss of rank 0 is not finite"):
        decide(losses[1:], np.where(np.arange(400) == 3, value, baseline), ranks=(8,))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ranks": (8, 4)}, "ascending"),
        ({"ranks": (4, 4)}, "ascending"),
        ({"ranks": (4, 8, 16)}, "ascending"),
        ({"ranks": (0, 8)}, "ascending"),
        ({"confidence": 0.5}, "confidence"),
        ({"confidence": 95.0}, "confidence"),
    ],
)
def test_what_cannot_be_decided_on_is_refused(changed: dict[str, Any], said: str) -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.0, 0.0))
    with pytest.raises(ValueError, match=said):
        decide(losses, baseline, **{"ranks": (4, 8)} | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"losses": np.zeros((2, 5))},
        {"losses": np.zeros((2, 0, 7))},
        {"baseline": np.zeros(6)},
        {"groups": np.zeros(6, dtype=int)},
        {"validation": np.zeros((3, 5, 2))},
    ],
    ids=["no ranks", "no seeds", "another baseline", "other groups", "another validation"],
)
def test_shapes_that_do_not_fit_are_refused(changed: dict[str, np.ndarray]) -> None:
    arrays = {"losses": np.zeros((2, 5, 7)), "baseline": np.ones(7)} | changed
    with pytest.raises((ValueError, TypeError)):  # TypeError: jaxtyping, which sees shapes before the function does
        decide(**arrays, ranks=(4, 8))


@pytest.mark.parametrize("wrong", [{"keep": 0.0}, {"keep": 1.0}, {"keep": 95.0}, {"absolute": 0.0}, {"absolute": -1.0}])
def test_a_margin_that_allows_nothing_or_everything_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Margin(**wrong)


def test_integer_and_single_precision_losses_are_averaged_in_double() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.2, 0.0, 0.0))
    single = decide(losses.astype(np.float32), baseline.astype(np.float32), ranks=(4, 8, 16))
    assert single.gain.mean == pytest.approx(decide(losses, baseline, ranks=(4, 8, 16)).gain.mean, rel=1e-6)


def test_the_share_that_is_tested_is_that_of_the_gain() -> None:
    """shortfall(keep) < 0 means loss < (1 - keep)·gain, whatever the losses."""
    generator = np.random.default_rng(0)
    losses, reference, baseline = generator.normal(size=(3, 5, 40)) + np.array([0.3, 0.2, 1.0])[:, None, None]
    tested = shortfall(losses, reference, baseline, Margin(keep=0.9)).mean()
    lost, gain = (losses - reference).mean(), (baseline - reference).mean()
    assert tested == pytest.approx(lost - 0.1 * gain)


def test_limits_shown_are_the_one_sided_ones() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.2, 0.0, 0.0))
    decision = decide(losses, baseline, ranks=(4, 8, 16), confidence=0.9)
    assert decision.verdicts[0].difference == crossed_interval(losses[-1] - losses[0], confidence=0.8)
    assert decision.verdicts[-1].difference == Interval(0.0, 0.0, 0.0)


def test_a_rank_that_fails_on_a_few_examples_is_not_called_sufficient() -> None:
    """One example of fifty loses much: another draw of examples may well hold three such."""
    excess = np.full(50, -0.04)
    excess[0] = 0.82
    noise = 1e-4 * np.random.default_rng(0).normal(size=(2, 5, 50))
    losses = np.stack([np.tile(excess, (5, 1)), np.zeros((5, 50))]) + noise
    decision = decide(losses, np.ones(50), ranks=(4, 8), margin=Margin(absolute=0.01))
    assert verdicts(decision) == ["unresolved", "sufficient"]
    # By Student's t it would suffice.
    contrast = losses[0] - losses[1] - 0.01
    assert contrast.mean() + 1.68 * contrast.mean(axis=0).std(ddof=1) / math.sqrt(50) < 0


def test_a_verdict_that_the_bootstrap_does_not_confirm_is_contradicted() -> None:
    """Where chance is of each seed and example alone, resampling both counts it more than once."""
    generator = np.random.default_rng(6)
    losses = np.stack([0.5 * generator.normal(size=(3, 150)), np.zeros((3, 150))])
    baseline = 1 + 0.1 * generator.normal(size=150)
    decision = decide(losses, baseline, ranks=(4, 8), margin=Margin(absolute=0.05))
    assert verdicts(decision) == ["sufficient", "sufficient"]
    assert [verdict.contradicted for verdict in decision.verdicts] == [True, False]
    ordinary = decided((0.0, 0.0), examples=100)
    assert [verdict.contradicted for verdict in ordinary.verdicts] == [False, False]


# Invariances. Excesses far from the margin and near it, so that every verdict occurs.
excesses = st.lists(st.sampled_from([0.0, 0.01, 0.02, 0.03, 0.05, 0.2]), min_size=2, max_size=4)
data_seeds = st.integers(0, 2**32 - 1)


def outcome(decision: Decision) -> tuple[Any, ...]:
    limits = [
        pytest.approx(value, abs=1e-9)
        for verdict in decision.verdicts
        for value in (verdict.difference.mean, verdict.difference.low, verdict.difference.high)
    ]
    return decision.status, decision.rank, verdicts(decision), decision.better, limits


@settings(max_examples=12)
@given(excesses, data_seeds)
def test_the_order_of_seeds_and_examples_means_nothing(excess: list[float], seed: int) -> None:
    generator = np.random.default_rng(seed)
    losses, baseline = comparison(generator, excess, examples=60)
    groups = generator.integers(20, size=60)
    seeds, examples = generator.permutation(5), generator.permutation(60)
    ranks = RANKS[: len(excess)]
    once = decide(losses, baseline, ranks=ranks, groups=groups, resamples=2)
    again = decide(
        losses[:, seeds][:, :, examples], baseline[examples], ranks=ranks, groups=groups[examples], resamples=2
    )
    assert outcome(again) == outcome(once)


@settings(max_examples=12)
@given(excesses, data_seeds, st.sampled_from([-8.0, -0.5, 0.25, 16.0]), st.sampled_from([0.25, 2.0]))
def test_a_shift_or_another_unit_changes_no_verdict(excess: list[float], seed: int, shift: float, unit: float) -> None:
    losses, baseline = comparison(np.random.default_rng(seed), excess, examples=60)
    ranks = RANKS[: len(excess)]
    once = decide(losses, baseline, ranks=ranks, resamples=2)
    again = decide(unit * losses + shift, unit * baseline + shift, ranks=ranks, resamples=2)
    assert (again.status, again.rank, verdicts(again)) == (once.status, once.rank, verdicts(once))
    assert again.gain.low == pytest.approx(unit * once.gain.low, abs=1e-9)  # type: ignore[operator]


@settings(max_examples=12)
@given(excesses, data_seeds, st.data())
def test_a_copy_of_a_rank_changes_no_other_verdict(excess: list[float], seed: int, data: st.DataObject) -> None:
    losses, baseline = comparison(np.random.default_rng(seed), excess, examples=60)
    ranks = RANKS[: len(excess)]
    copied = data.draw(st.integers(0, len(excess) - 2))
    once = verdicts(decide(losses, baseline, ranks=ranks, resamples=2))
    again = verdicts(
        decide(
            np.insert(losses, copied, losses[copied], axis=0),
            baseline,
            ranks=sorted([*ranks, ranks[copied] + 1]),
            resamples=2,
        )
    )
    assert again == [*once[:copied], once[copied], *once[copied:]]


@settings(max_examples=12)
@given(excesses, data_seeds)
def test_verdicts_lie_in_order(excess: list[float], seed: int) -> None:
    """From the smallest rank up: some underfit, some are unresolved, the rest suffice."""
    losses, baseline = comparison(np.random.default_rng(seed), excess, examples=60)
    decision = decide(losses, baseline, ranks=RANKS[: len(excess)], resamples=2)
    order = {"underfits": 0, "unresolved": 1, "sufficient": 2}
    found = [order[verdict] for verdict in verdicts(decision)]
    assert found == sorted(found)


@settings(max_examples=12)
@given(excesses, data_seeds)
def test_a_wider_margin_never_asks_for_a_larger_rank(excess: list[float], seed: int) -> None:
    losses, baseline = comparison(np.random.default_rng(seed), excess, examples=60)
    found = [
        decide(losses, baseline, ranks=RANKS[: len(excess)], margin=Margin(absolute=absolute), resamples=2).rank
        for absolute in (0.001, 0.01, 0.1, 1.0)
    ]
    assert found == sorted(found, reverse=True)
