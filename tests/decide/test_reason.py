"""The sentences: what they must say, and that their figures are the decision's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rankwise.decide.reason import reason
from rankwise.decide.verdict import Decision, Margin, decide
from rankwise.records import Interval, Metric
from tests.decide.simulated import comparison

RANKS = (2, 4, 8, 16)
KEEP_95 = Margin(keep=0.95)


def decided(excess: tuple[float, ...], *, margin: Margin = KEEP_95, **simulated: Any) -> Decision:
    losses, baseline = comparison(np.random.default_rng(0), excess, **simulated)
    return decide(losses, baseline, ranks=RANKS[-len(excess) :], margin=margin, resamples=200)


def limits(decision: Decision, rank: int) -> tuple[float, float]:
    """How much a rank loses at least and at most."""
    difference = next(verdict.difference for verdict in decision.verdicts if verdict.rank == rank)
    assert difference.low is not None
    assert difference.high is not None
    return -difference.high, -difference.low


def test_a_resolved_answer_is_repeated_with_its_figures() -> None:
    decision = decided((0.2, 0.1, 0.0, 0.0))
    most, (least_of_4, most_of_4) = limits(decision, 8)[1], limits(decision, 4)
    assert reason(decision, "nll") == (
        f"r=8 loses at most {most:.4f} nats to r=16, 95 % sure, margin {decision.margin:.4f} nats, "
        f"5 % of its gain over rank 0; r=4 loses between {least_of_4:.4f} and {most_of_4:.4f} nats"
    )
    assert "no smaller rank was tried" in reason(decided((0.0, 0.0)), "nll")


def test_below_rank_1_there_is_none_to_try() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.0, 0.0))
    decision = decide(losses, baseline, ranks=(1, 2), resamples=200)
    assert decision.rank == 1
    assert "was tried" not in reason(decision, "nll")


def test_accuracy_is_told_in_points() -> None:
    decision = decided((0.2, 0.1, 0.0, 0.0), margin=Margin(absolute=0.02))
    assert f"at most {100 * limits(decision, 8)[1]:.2f} points" in reason(decision, "accuracy")
    assert "margin 2.00 points" in reason(decision, "accuracy")


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
def test_what_would_tell_is_said_as_one_types_it(metric: Metric) -> None:
    decision = decided((0.0, 0.0, 0.0, 0.0), seeds=3, of_seeds=0.03)
    assert decision.needed is not None
    assert decision.status == "unresolved"
    said = reason(decision, metric)
    assert "cannot be told" in said
    assert f"if it loses nothing, {decision.needed.seeds} seeds" in said


@pytest.mark.parametrize(
    ("excess", "simulated", "said"),
    [
        ((0.3, 0.2, 0.1, 0.0), {}, "try r=32 as well"),
        ((0.0, 0.0, 0.0, 0.0), {"gain": 0.0}, "look at data, learning rate and target modules before rank"),
        (
            (0.0, 0.0, 0.0, 0.0),
            {"gain": 0.0, "examples": 20},
            "which was seen, its gain, more test examples or seeds would",
        ),
        ((-0.3, -0.3, -0.3, 0.0), {"gain": 0.0}, "r=16 overfits, or its learning rates are unfair to it"),
        ((0.0, 0.0, 0.0, 0.0), {"seeds": 1}, "train with --seeds 3 or more"),
        ((0.0,), {}, "only r=16 was compared"),
        ((0.1, -0.1, 0.0, 0.0), {}, "r=4 is better than r=16"),
        ((0.0, 0.0, 0.0, 0.0), {"margin": Margin(absolute=1.0)}, "the frozen model would do"),
        (
            (0.0, 0.0, 0.0, 0.0),
            {"of_seeds": 0.05, "margin": Margin(absolute=0.001)},
            "neither more seeds nor more test",
        ),
    ],
)
def test_every_answer_says_what_to_do(excess: tuple[float, ...], simulated: dict[str, Any], said: str) -> None:
    assert said in reason(decided(excess, **simulated), "nll", one_seed=simulated.get("seeds") == 1)


def test_between_two_ranks_far_apart_there_is_one_to_try() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.3, 0.0))
    said = reason(decide(losses, baseline, ranks=(1, 4), resamples=200), "nll")
    assert said.endswith("nats: try r=2, between them, and try r=8 as well")


def test_a_verdict_that_counts_how_unsure_the_margin_is_says_so() -> None:
    """Examples of twice the gain lose twice as much: a share of it that is well known, where loss and gain are not."""
    gains = np.random.default_rng(0).exponential(1.0, 60)
    noise = np.random.default_rng(1).normal(0, 0.02, (3, 60))
    losses = np.stack([0.08 * gains + noise, np.zeros((3, 60))])
    decision = decide(losses, gains, ranks=(4, 8), resamples=200)
    least = limits(decision, 4)[0]
    assert decision.margin is not None
    assert least > 0
    assert decision.verdicts[0].verdict == "underfits"
    said = "and, 95 % sure, keeps less than 95 % of the gain over rank 0 whatever that is"
    assert (said in reason(decision, "nll")) is (least <= decision.margin)
    assert said in reason(replace(decision, margin=least), "nll")
    assert said not in reason(replace(decision, margin=0.99 * least), "nll")


@pytest.mark.parametrize(("margin", "share"), [(0.03, "12 %"), (0.5, "200 %"), (30.0, "12,000 %")])
def test_a_margin_is_a_share_of_the_gain_in_plain_figures(margin: float, share: str) -> None:
    decision = replace(decided((0.0, 0.0)), margin=margin, keep=1 - margin / 0.25)
    assert f", {share} of its gain over rank 0" in reason(decision, "nll")


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (1.0, "gains 100.00 points over the frozen model on every test example with every seed alike"),
        (0.0, "is no better than the frozen model on every test example with every seed alike"),
        (-1.0, "loses 100.00 points to the frozen model on every test example with every seed alike"),
    ],
)
def test_where_nothing_varies_no_more_seeds_are_asked_for(baseline: float, said: str) -> None:
    decision = decide(np.zeros((2, 3, 40)), np.full(40, baseline), ranks=(8, 16))
    reasons = reason(decision, "accuracy")
    assert said in reasons
    assert "test on other examples or with --metric nll" in reasons
    assert ("higher learning rates" in reasons, "lower learning rates" in reasons) == (baseline == 0, baseline < 0)
    assert "seeds" not in reasons


def test_one_example_asks_for_more_of_them() -> None:
    decision = decide(np.zeros((2, 3, 1)), np.ones(1), ranks=(8, 16))
    assert (
        reason(decision, "nll")
        == "one test example, or one group that is nearly all of them, tells nothing: test on more"
    )


def test_a_lead_that_grows_asks_for_longer_training_and_for_nothing_else() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.0, 0.0))
    curves = np.full((2, 5, 2), 0.5)
    curves[1, :, 1] -= 0.1 + 0.001 * np.arange(5)
    said = reason(decide(losses, baseline, ranks=(8, 16), validation=curves), "nll")
    assert "still drawing away when training ended: train longer" in said


def test_a_rank_that_loses_more_than_the_margin_is_not_said_to_be_open() -> None:
    """One seed of the smallest rank collapsed, so that it cannot be told, and with it no larger one is too small."""
    losses, baseline = comparison(np.random.default_rng(0), (0.0, 0.15, 0.15, 0.0))
    losses[0, 0] += 1.0
    decision = decide(losses, baseline, ranks=RANKS, resamples=200)
    assert {verdict.verdict for verdict in decision.verdicts[:-1]} == {"unresolved"}
    assert decision.needed is None
    least, most = limits(decision, 8)
    said = reason(decision, "nll")
    assert (
        f"r=8 loses between {least:.4f} and {most:.4f} nats, more than the margin; it is called too small only where"
        in said
    )
    assert "of r=2 more seeds would tell" in said
    assert "cannot be told" not in said


def test_ranks_out_of_order_are_no_matter_of_more_seeds() -> None:
    decision = decided((0.0, 0.1, 0.0, 0.0))
    assert (decision.status, decision.rank) == ("unresolved", 8)
    assert "more than the margin; r=2 does not, so its learning rates may be unfair to it" in reason(decision, "nll")


def test_a_rank_that_does_not_suffice_beside_a_better_one_is_said_to_be_so() -> None:
    said = reason(decided((0.0, -0.2, 0.0, 0.0)), "nll")
    assert "r=2 would do beside r=16, but is not shown to beside r=4" in said
    assert "r=4 is better than r=16, which overfits" in said


def test_a_gain_that_is_only_not_shown_is_no_overfitting() -> None:
    """One collapsed seed of the reference hides its gain; that says nothing of overfitting."""
    losses, baseline = comparison(np.random.default_rng(0), (0.0, 0.0, 0.0, 0.0))
    losses[-1, 0] += 1.5
    decision = decide(losses, baseline, ranks=RANKS)
    assert (decision.status, decision.rank, decision.better) == ("unresolved", None, ())
    assert "overfits" not in reason(decision, "nll")
    assert "more seeds or test examples would tell" in reason(decision, "nll")


@pytest.mark.parametrize(
    ("excess", "ranks", "missing", "said"),
    [
        ((0.0, 0.0), (8, 16), (4,), "whether r=4 would do is not known, since no loss there is finite"),
        ((0.2, 0.0), (4, 8), (16,), "r=16 may gain more, but no loss there is finite: lower learning rates"),
        ((0.2, 0.0), (4, 64), (), "try r=32, between them"),
        ((0.2, 0.0), (4, 16), (8,), "no loss there is finite: lower learning rates; r=4 loses between"),
    ],
)
def test_ranks_without_a_result_are_not_said_to_be_untried(
    excess: tuple[float, ...], ranks: tuple[int, ...], missing: tuple[int, ...], said: str
) -> None:
    losses, baseline = comparison(np.random.default_rng(0), excess)
    decision = decide(losses, baseline, ranks=ranks, missing=missing)
    assert said in reason(decision, "nll")
    assert decision.status != "resolved"
    assert "no smaller rank was tried" not in reason(decision, "nll")


def test_no_larger_rank_is_advised_where_none_can_be_trained() -> None:
    decision = decided((0.3, 0.2, 0.1, 0.0))
    assert "try r=" not in reason(decision, "nll", largest=True)
    assert "no larger rank can be trained" in reason(decision, "nll", largest=True)


def test_examples_of_groups_are_asked_for_with_groups() -> None:
    decision = decided((0.0, 0.0), seeds=20, of_seeds=0.0, of_examples=0.3, examples=40)
    assert decision.needed is not None
    assert decision.needed.examples is not None
    asked = f"{decision.needed.examples:,} test examples"
    assert f"{asked} of as many groups more" in reason(decision, "nll", grouped=True)
    assert "groups" not in reason(decision, "nll")


def test_what_is_kept_of_an_uncertain_gain_is_not_said_to_lose_more_than_the_margin() -> None:
    """Where the gain varies with the loss, a share of it is kept though the loss may be more than the margin."""
    generator = np.random.default_rng(0)
    size = generator.gamma(0.5, 2.0, size=400)
    losses = np.stack([0.03 * size, np.zeros(400)])[:, None] + 1e-3 * generator.normal(size=(2, 5, 400))
    decision = decide(losses, size, ranks=(8, 16))
    most = limits(decision, 8)[1]
    assert decision.rank == 8
    assert decision.margin is not None
    decision = replace(decision, margin=most / 2)
    assert f"loses at most {most:.4f} nats to r=16, and, 95 % sure, keeps 95 % of its gain" in reason(decision, "nll")


def test_a_rank_that_is_surely_better_loses_nothing() -> None:
    decision = decided((-0.1, 0.0))
    assert decision.verdicts[0].difference == Interval(*[pytest.approx(0.1, abs=0.03)] * 3)
    assert "r=8 loses nothing to r=16" in reason(decision, "nll")


def test_a_rank_that_answers_every_example_alike_is_not_told_apart_from_one_that_loses_on_others() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.0, 0.0))
    losses[0] = losses[1]
    decision = decide(losses, baseline, ranks=(8, 16), margin=KEEP_95, resamples=200)
    assert (decision.status, decision.rank, decision.needed) == ("unresolved", 16, None)
    alike = "r=8 and r=16 answer every test example alike: examples on which they differ"
    assert f"{alike} would tell" in reason(decision, "nll")
    assert f"{alike}, or --metric nll, would tell" in reason(decision, "accuracy")
