"""From scores to rows and a recommendation: what is told beyond the decision itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from rankwise.compare.answer import Answer, Taken, TestData, answer
from rankwise.compare.choice import Choice
from rankwise.compare.config import ComparisonConfig
from rankwise.errors import RunError
from rankwise.records import Evaluation, Scores, TrialResult
from tests.decide.simulated import comparison

EXAMPLES, SEEDS = 400, 5
RANKS = (4, 8, 16)
CONFIG = ComparisonConfig(train="t.csv", ranks=RANKS, learning_rates=(1e-3,), seeds=SEEDS)
LABELS = np.random.default_rng(7).integers(2, size=EXAMPLES)
TAKEN = {rank: Taken(1000 * rank, 10.0 + rank, 2_000_000 + rank) for rank in RANKS}


def predicted(share: float, seed: int, seeds: int = SEEDS) -> np.ndarray:
    """Predictions of which a share is right."""
    right = np.random.default_rng(seed).random((seeds, EXAMPLES)) < share
    return np.where(right, LABELS, 1 - LABELS)


def scored(losses: np.ndarray, guesses: np.ndarray, *, classes: bool) -> Scores:
    right = (guesses == LABELS).astype(np.float32)
    return Scores(losses.astype(np.float32), right, guesses if classes else None)


def answered(
    excess: tuple[float, ...] = (0.2, 0.0, 0.0),
    accuracies: tuple[float, ...] = (0.7, 0.8, 0.8),
    config: ComparisonConfig = CONFIG,
    nll: dict[int, float] | None = None,
    classes: bool = True,
    groups: np.ndarray | None = None,
) -> Answer:
    losses, baseline = comparison(np.random.default_rng(0), excess, examples=EXAMPLES, seeds=SEEDS)
    scores = {
        rank: scored(losses[index], predicted(accuracies[index], rank), classes=classes)
        for index, rank in enumerate(RANKS)
    }
    for rank, value in (nll or {}).items():
        scores[rank].nll[0, 0] = value
    by_rank = {rank: tuple(config.trial(rank, 1e-3, seed) for seed in range(SEEDS)) for rank in RANKS}
    results = {
        trial: TrialResult(trial, "trained", (0.7, 0.5), (Evaluation(1, 0.6, 0.6), Evaluation(2, 0.5, 0.7)))
        for trials in by_rank.values()
        for trial in trials
    }
    rank_0 = scored(baseline[None], predicted(0.5, 0, seeds=1), classes=classes)
    data = TestData(LABELS, 2, groups) if classes else TestData(np.zeros_like(LABELS), 0, None)
    return answer(Choice(config, results, by_rank, math.inf), scores, rank_0, data, TAKEN, "200 steps of 8", None, {})


def test_without_classes_accuracy_alone_guards() -> None:
    tokens, classes = answered(classes=False), answered()
    assert [guard.metric for guard in tokens.recommendation.guards] == ["accuracy"]
    assert tokens.recommendation.guards[0] == classes.recommendation.guards[0]
    assert {(row.macro_f1, row.mcc) for row in tokens.experiments} == {(None, None)}
    assert [row.accuracy for row in tokens.experiments] == [row.accuracy for row in classes.experiments]


def test_a_recommendation_is_all_that_the_next_training_needs() -> None:
    found = answered().recommendation
    assert (found.status, found.rank, found.alpha, found.use_rslora, found.learning_rate) == (
        "resolved",
        8,
        16.0,
        False,
        1e-3,
    )
    assert (found.target_modules, found.metric, found.keep) == ("all-linear", "nll", pytest.approx(0.95))
    assert found.holds_for == "200 steps of 8"
    assert found.doubling is not None
    assert (found.doubling.trainable_params, found.doubling.training_time_seconds) == (8000, 8.0)
    assert found.doubling.peak_memory_bytes == 8
    assert answered((0.2, 0.1, 0.0)).recommendation.doubling is None


def test_a_row_tells_its_verdict_and_its_difference() -> None:
    experiments = answered().experiments
    assert [row.verdict for row in experiments] == ["underfits", "sufficient", "sufficient"]
    assert experiments[0].difference == pytest.approx(-0.2, abs=0.02)
    assert experiments[0].difference_low is not None
    assert experiments[0].difference_low < experiments[0].difference < 0
    assert experiments[-1].difference == 0


def test_macro_f1_and_matthews_correlation_are_scikit_learns_means_over_seeds() -> None:
    for index, row in enumerate(answered().experiments):
        of_seeds = predicted((0.7, 0.8, 0.8)[index], RANKS[index])
        assert row.accuracy == pytest.approx((of_seeds == LABELS).mean())
        assert row.macro_f1 == pytest.approx(np.mean([f1_score(LABELS, one, average="macro") for one in of_seeds]))
        assert row.mcc == pytest.approx(np.mean([matthews_corrcoef(LABELS, one) for one in of_seeds]))


def test_a_rank_that_wins_on_loss_and_loses_on_accuracy_says_so() -> None:
    warned = answered(accuracies=(0.7, 0.6, 0.8)).recommendation
    assert [(guard.metric, guard.worse) for guard in warned.guards] == [
        ("accuracy", True),
        ("macro_f1", True),
        ("mcc", True),
    ]
    assert "but its accuracy is worse than at r=16 by" in warned.reason
    # A loss that may be chance is none that is shown.
    for accuracies in ((0.7, 0.82, 0.8), (0.7, 0.79, 0.8)):
        assert not any(guard.worse for guard in answered(accuracies=accuracies).recommendation.guards)


def test_accuracy_may_decide_with_a_margin_in_its_own_unit() -> None:
    by_accuracy = replace(CONFIG, metric="accuracy", margin=0.06)
    found = answered((0.0, 0.0, 0.0), (0.6, 0.81, 0.8), by_accuracy)
    assert (found.recommendation.status, found.recommendation.rank) == ("resolved", 8)
    assert (found.recommendation.margin, found.recommendation.metric) == (0.06, "accuracy")
    assert found.experiments[0].difference == pytest.approx(-0.2, abs=0.05)
    assert [guard.metric for guard in found.recommendation.guards] == ["nll", "macro_f1", "mcc"]
    assert "margin 6.00 points" in found.recommendation.reason


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_rank_whose_test_loss_is_not_finite_has_a_row_and_no_verdict(value: float) -> None:
    found = answered((0.2, 0.0, 0.0), nll={16: value})
    assert found.recommendation.status == "not_plateaued"
    assert found.recommendation.rank == 8
    assert found.experiments[-1].verdict == "unresolved"
    assert "rank 16: a test loss is not finite, so it takes no part in the decision" in found.notes
    with pytest.raises(RunError, match="--dtype float32"):
        answered(nll=dict.fromkeys(RANKS, value))


def test_a_metric_that_is_worse_than_the_frozen_models_is_told() -> None:
    worse = "but its accuracy is worse than the frozen model's, 95 % sure"
    assert worse in answered(accuracies=(0.7, 0.4, 0.4)).recommendation.reason
    assert worse not in answered(accuracies=(0.7, 0.51, 0.51)).recommendation.reason


def test_failures_that_few_seeds_have_are_among_what_is_not_known() -> None:
    told = "failures that few trainings have: 5 seeds may have none of what befalls 45 %"
    assert answered().recommendation.unknown[0] == told
    assert (
        told not in answered((0.2, 0.2, 0.0)).recommendation.unknown
    )  # the reference, which is judged by its own seeds


def test_what_is_not_known_is_told() -> None:
    assert "ranks below 4" in answered((0.0, 0.0, 0.0)).recommendation.unknown
    assert "ranks below 4" not in answered().recommendation.unknown
    assert any("forgotten" in each for each in answered().recommendation.unknown)


def test_few_groups_of_examples_may_have_none_of_a_rare_kind() -> None:
    of_four = np.arange(EXAMPLES) // 4
    told = "losses on rare examples: 100 test groups of examples may have none of a kind that is 3 % of all"
    assert answered(groups=of_four).recommendation.unknown[0] == told
    two = answered((0.2, -0.6, 0.0), groups=np.arange(EXAMPLES) % 2).recommendation
    assert two.rank == 8
    assert two.unknown[0].endswith("2 test groups of examples may have none of a kind that is 78 % of all")
    # The reference loses nothing to itself.
    reference = answered((0.2, 0.2, 0.0), groups=of_four).recommendation
    assert reference.rank == 16
    assert not any("rare" in each for each in reference.unknown)
    assert not any("rare" in each for each in answered().recommendation.unknown)


def test_no_gain_has_no_rank_and_nothing_to_train_with() -> None:
    found = answered((0.5, 0.5, 0.5)).recommendation
    assert (found.status, found.rank, found.alpha, found.learning_rate, found.guards) == (
        "no_gain",
        None,
        None,
        None,
        (),
    )
