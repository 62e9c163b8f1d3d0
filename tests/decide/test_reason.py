"""The sentences: what they must say, and that their figures are the decision's."""

from __future__ import annotations

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
    assert said in reason(decided(excess, **simulated), "nll")


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
    assert f"r=8 loses between {least:.4f} and {most:.4f} nats, and is called too small only where" in said
    assert "cannot be told" not in said


def test_a_rank_that_is_surely_better_loses_nothing() -> None:
    decision = decided((-0.1, 0.0))
    assert decision.verdicts[0].difference == Interval(*[pytest.approx(0.1, abs=0.03)] * 3)
    assert "r=8 loses nothing to r=16" in reason(decision, "nll")


def test_a_rank_that_answers_every_example_alike_loses_nothing() -> None:
    losses, baseline = comparison(np.random.default_rng(0), (0.0, 0.0))
    losses[0] = losses[1]
    decision = decide(losses, baseline, ranks=(8, 16), margin=KEEP_95, resamples=200)
    assert decision.verdicts[0].difference.high == 0
    assert "r=8 loses nothing to r=16" in reason(decision, "nll")
