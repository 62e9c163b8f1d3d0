from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rankwise.compare.config import ComparisonConfig
from rankwise.compare.results import TestScores, choose_learning_rates, experiment, notes_on_training
from rankwise.records import Evaluation, Trial, TrialResult

CONFIG = ComparisonConfig(train="t.csv", ranks=(2, 4), learning_rates=(1e-4, 1e-3, 1e-2), seeds=2)


def results(losses: dict[tuple[int, float], list[float]]) -> dict[Trial, TrialResult]:
    found = {}
    for (rank, rate), of_seeds in losses.items():
        for seed, loss in enumerate(of_seeds):
            trial = CONFIG.trial(rank, rate, seed)
            status = "trained" if math.isfinite(loss) else "diverged"
            found[trial] = TrialResult(trial, status, (0.7,), (Evaluation(1, loss, 0.5),))  # type: ignore[arg-type]
    return found


def row(correct: np.ndarray) -> Any:
    scores = TestScores(nll=np.full(correct.shape, 0.5), correct=correct)
    costs = {"trainable_params": 1, "training_time_seconds": 1.0, "peak_memory_bytes": None}
    return experiment(Trial(2, 2.0, False, 1e-3, 0), scores, None, **costs)


def test_a_rate_is_chosen_over_all_seeds_and_never_one_that_diverged_on_one() -> None:
    """The rate that is best on one seed kills the next."""
    found = results(
        {
            (2, 1e-4): [0.6, 0.6],
            (2, 1e-3): [0.1, 0.9],
            (2, 1e-2): [0.2, math.nan],
            (4, 1e-4): [0.6, 0.6],
            (4, 1e-3): [0.3, 0.4],
            (4, 1e-2): [0.5, 0.5],
        }
    )
    assert choose_learning_rates(found, CONFIG) == {2: 1e-3, 4: 1e-3}
    assert notes_on_training(found, choose_learning_rates(found, CONFIG), CONFIG) == [
        "1 of 12 trials diverged: r2-a2-lr0.01-s1"
    ]


def test_edges_of_the_grid_and_ranks_without_a_rate_are_told() -> None:
    bad = [math.nan, 0.5]
    found = results(
        {(2, rate): bad for rate in CONFIG.learning_rates}
        | {(4, 1e-4): [0.5, 0.5], (4, 1e-3): [0.4, 0.4], (4, 1e-2): [0.3, 0.3]}
    )
    chosen = choose_learning_rates(found, CONFIG)
    assert chosen == {4: 1e-2}
    notes = notes_on_training(found, chosen, CONFIG)
    assert "rank 2: at every learning rate a seed diverged; add lower --learning-rates" in notes
    assert any(note.startswith("rank 4: the best learning rate, 0.01, is the highest") for note in notes)


def test_a_dropped_trial_is_never_chosen_however_low_its_last_loss_was() -> None:
    found = results({(rank, rate): [0.5, 0.5] for rank in CONFIG.ranks for rate in CONFIG.learning_rates})
    for seed in CONFIG.seed_numbers:
        trial = CONFIG.trial(2, 1e-3, seed)
        found[trial] = TrialResult(trial, "dropped", (0.7,), (Evaluation(1, 0.1, 0.5),))
    assert choose_learning_rates(found, CONFIG) == {2: 1e-4, 4: 1e-4}


def test_the_edge_is_that_of_the_rates_that_were_tried_for_this_rank() -> None:
    """The schedule adds rates beyond an edge, for the ranks that want them."""
    found = results(
        {(2, 1e-4): [0.6, 0.6], (2, 1e-3): [0.5, 0.5], (2, 1e-2): [0.3, 0.3], (2, 1e-1): [0.4, 0.4]}
        | {(4, 1e-4): [0.6, 0.6], (4, 1e-3): [0.5, 0.5], (4, 1e-2): [0.3, 0.3]}
    )
    notes = notes_on_training(found, choose_learning_rates(found, CONFIG), CONFIG)
    assert notes == ["rank 4: the best learning rate, 0.01, is the highest that was tried; one beyond it may be better"]


def test_limits_of_an_accuracy_stay_within_0_and_1() -> None:
    correct = np.ones((2, 10), dtype=bool)
    correct[0, 0] = False
    found = row(correct)
    assert found.accuracy == pytest.approx(0.95)
    assert 0 <= found.accuracy_low < 0.95 < found.accuracy_high == 1


def test_an_accuracy_without_a_single_error_has_no_interval() -> None:
    found = row(np.ones((3, 60), dtype=bool))
    assert (found.accuracy, found.accuracy_low, found.accuracy_high) == (1.0, None, None)
