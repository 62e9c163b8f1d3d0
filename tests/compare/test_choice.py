from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rankwise.compare.choice import choose, notes_on_training
from rankwise.compare.config import ComparisonConfig
from rankwise.errors import RunError
from rankwise.records import Evaluation, Trial, TrialResult

CONFIG = ComparisonConfig(train="t.csv", ranks=(2, 4), alpha="rank", learning_rates=(1e-4, 1e-3, 1e-2), seeds=2)
RANK_0 = 1.0  # its loss on validation, above all that trains
TWO_SEEDS = "two seeds: where most of the chance is theirs, limits are right less often than they say"


def results(losses: dict[tuple[int, float], list[float]]) -> dict[Trial, TrialResult]:
    found = {}
    for (rank, rate), of_seeds in losses.items():
        for seed, loss in enumerate(of_seeds):
            trial = CONFIG.trial(rank, rate, seed)
            status = "trained" if math.isfinite(loss) else "diverged"
            found[trial] = TrialResult(trial, status, (0.7,), (Evaluation(1, loss, 0.5),))  # type: ignore[arg-type]
    return found


def chosen(found: dict[Trial, TrialResult]) -> dict[int, float]:
    choice = choose(CONFIG, found, RANK_0)
    assert all([trial.seed for trial in trials] == [0, 1] for trials in choice.by_rank.values())
    return {rank: trials[0].learning_rate for rank, trials in choice.by_rank.items()}


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
    assert chosen(found) == {2: 1e-3, 4: 1e-3}
    assert notes_on_training(choose(CONFIG, found, RANK_0)) == [
        "1 of 12 trials diverged: r2-a2-lr0.01-s1",
        TWO_SEEDS,
    ]


def test_a_mean_hides_no_seed_that_a_rate_has_killed() -> None:
    """At 1e-2 rank 2 has the lower mean, and a seed above rank 0. Where one fails at every rate, means decide."""
    found = results(
        {(2, 1e-4): [1.2, 0.9], (2, 1e-3): [0.7, 0.7], (2, 1e-2): [0.2, 1.01]}
        | {(4, 1e-4): [1.2, 0.9], (4, 1e-3): [1.2, 0.7], (4, 1e-2): [0.2, 1.01]}
    )
    choice = choose(CONFIG, found, RANK_0)
    assert chosen(found) == {2: 1e-3, 4: 1e-2}
    assert choice.failed(2) == []
    assert choice.failed(4) == [CONFIG.trial(4, 1e-2, 1)]
    worse = found | results({(4, rate): [1.2, 1.1] for rate in (1e-4, 1e-3, 1e-2)})
    assert "every seed ended no better than rank 0" in notes_on_training(choose(CONFIG, worse, RANK_0))[0]
    assert notes_on_training(choice)[0] == (
        "rank 4: at its learning rate, 0.01, seed 1 ended no better than rank 0, by NLL on validation; "
        "add other --learning-rates, or more --steps"
    )


def test_edges_of_the_grid_and_ranks_without_a_rate_are_told() -> None:
    bad = [math.nan, 0.5]
    found = results(
        {(2, rate): bad for rate in CONFIG.learning_rates}
        | {(4, 1e-4): [0.5, 0.5], (4, 1e-3): [0.4, 0.4], (4, 1e-2): [0.3, 0.3]}
    )
    assert chosen(found) == {4: 1e-2}
    notes = notes_on_training(choose(CONFIG, found, RANK_0))
    assert "rank 2: at every learning rate a seed diverged; add lower --learning-rates" in notes
    assert any(note.startswith("rank 4: the best learning rate, 0.01, is the highest") for note in notes)


def test_a_dropped_trial_is_never_chosen_however_low_its_last_loss_was() -> None:
    found = results({(rank, rate): [0.5, 0.5] for rank in CONFIG.ranks for rate in CONFIG.learning_rates})
    for seed in CONFIG.seed_numbers:
        trial = CONFIG.trial(2, 1e-3, seed)
        found[trial] = TrialResult(trial, "dropped", (0.7,), (Evaluation(1, 0.1, 0.5),))
    assert chosen(found) == {2: 1e-4, 4: 1e-4}


def test_the_edge_is_that_of_the_rates_that_were_tried_for_this_rank() -> None:
    """The schedule adds rates beyond an edge, for the ranks that want them."""
    found = results(
        {(2, 1e-4): [0.6, 0.6], (2, 1e-3): [0.5, 0.5], (2, 1e-2): [0.3, 0.3], (2, 1e-1): [0.4, 0.4]}
        | {(4, 1e-4): [0.6, 0.6], (4, 1e-3): [0.5, 0.5], (4, 1e-2): [0.3, 0.3]}
    )
    notes = notes_on_training(choose(CONFIG, found, RANK_0))
    assert notes == [
        "rank 4: the best learning rate, 0.01, is the highest that was tried; one beyond it may be better",
        TWO_SEEDS,
    ]


def test_without_any_rate_there_is_nothing_to_choose() -> None:
    found = results({(rank, rate): [math.nan, 0.5] for rank in CONFIG.ranks for rate in CONFIG.learning_rates})
    with pytest.raises(RunError, match="add lower --learning-rates"):
        choose(CONFIG, found, RANK_0)


def test_another_scaling_is_another_choice() -> None:
    found = results({(rank, rate): [0.5, 0.5] for rank in CONFIG.ranks for rate in CONFIG.learning_rates})
    stabilised = replace(CONFIG, scalings=("rslora",))
    for seed in CONFIG.seed_numbers:
        for rank in CONFIG.ranks:
            for rate, loss in ((1e-4, 0.1), (1e-3, 0.2), (1e-2, 0.3)):
                trial = stabilised.trial(rank, rate, seed)
                found[trial] = TrialResult(trial, "trained", (0.7,), (Evaluation(1, loss + 0.01 * seed, 0.5),))
    assert chosen(found) == {2: 1e-4, 4: 1e-4}
    choice = choose(stabilised, found, RANK_0)
    assert all(trial.use_rslora for trial in choice.trials)
    assert choice.best(4) == stabilised.trial(4, 1e-4, 0)
    assert choice.best(None).seed == 0


def test_of_two_scalings_the_one_where_nothing_trains_is_named() -> None:
    nothing = results({(rank, rate): [math.nan, 0.1] for rank in (2, 4) for rate in (1e-4, 1e-3, 1e-2)})
    beside = {replace(trial, use_rslora=True): result for trial, result in nothing.items()}
    with pytest.raises(RunError, match=r"^at every learning rate of every rank a seed diverged; add lower"):
        choose(CONFIG, nothing, RANK_0)
    with pytest.raises(RunError, match=r"^at every learning rate of every rank under alpha/rank a seed diverged; add"):
        choose(CONFIG, nothing | beside, RANK_0)
