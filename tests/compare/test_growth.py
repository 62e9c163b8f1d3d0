"""An escalation from its start to its answer, on a tiny model; a step's cost is not measured but given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise import ComparisonConfig, RankComparison, UserError, plan_rank_comparison, run_rank_comparison
from rankwise.compare.journal import Event, Journal
from rankwise.records import Trial
from rankwise.train.cost import StepCost
from tests.compare.runs import SECONDS, KilledError, given_costs, journal, numbers, tiny_comparison


@pytest.fixture(scope="module", autouse=True)
def costs() -> Iterator[None]:
    with given_costs():
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    """Its ranks are alike by a margin that nothing exceeds, so it goes down to 1."""
    return tiny_comparison(
        tmp_path_factory.mktemp("model") / "bert", strategy="escalate", steps=8, evaluations=2, margin=5.0
    )


@pytest.fixture(scope="module")
def finished(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> RankComparison:
    return run_rank_comparison(config, run=tmp_path_factory.mktemp("runs") / "run")


def ranks(comparison: RankComparison) -> list[int]:
    return [experiment.rank for experiment in comparison.experiments]


def path(comparison: RankComparison) -> str:
    (note,) = [note for note in comparison.notes if note.startswith("escalation: ")]
    return note


def test_ranks_that_agree_lead_down_to_1(finished: RankComparison) -> None:
    assert ranks(finished) == [1, 2, 4]
    assert finished.recommendation.stopped == "plateau"
    assert path(finished).startswith("escalation: 2 and 4 agree (")
    assert path(finished).endswith(" → stop: plateau")
    steps = [(step["basis"]["ranks"], step["rank"], step["stopped"]) for step in journal(finished.run, "escalation")]
    assert steps == [([2, 4], 1, None), ([1, 2, 4], None, "plateau")]
    assert [[cost["rank"] for cost in event["ranks"]] for event in journal(finished.run, "costs")] == [
        [2, 4],
        [1, 2, 4],
    ]


def test_test_is_scored_once_at_the_end(finished: RankComparison) -> None:
    events = [event["event"] for event in Journal(finished.run / "journal.jsonl").events]
    last_step = len(events) - 1 - events[::-1].index("escalation")
    assert "scored" not in events[:last_step]
    assert len(journal(finished.run, "decided")) == 1


def test_a_rank_that_is_better_is_doubled(config: ComparisonConfig, tmp_path: Path) -> None:
    """After a few steps, with alpha = rank, the larger rank has moved further."""
    small = replace(config, ranks=(8, 16), learning_rates=(3e-3,), seeds=3, steps=20, margin=1e-4)
    comparison = run_rank_comparison(small, run=tmp_path / "run")
    assert ranks(comparison) == [8, 16, 32]
    assert path(comparison).startswith("escalation: 8 loses ")
    assert comparison.recommendation.stopped in ("noise", "rank limit")  # no layer has more than 32


def test_a_finished_run_is_read_again_without_training(finished: RankComparison, config: ComparisonConfig) -> None:
    before = (finished.run / "journal.jsonl").read_bytes()
    assert run_rank_comparison(config, run=finished.run, resume=True) == finished
    assert (finished.run / "journal.jsonl").read_bytes() == before


def test_killed_between_steps_a_run_ends_with_the_same_numbers(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a step, while the rank that it asks for stands at a rung, and after the last one."""
    run = tmp_path / "run"
    append = Journal.append
    begun = len(journal(finished.run, "trained"))
    for kind, wanted in (("escalation", 1), ("trained", begun - 1), ("escalation", 2)):

        def kill(self: Journal, event: str, kind: str = kind, wanted: int = wanted, **values: Any) -> Event:
            journaled = append(self, event, **values)
            if event == kind and len(self.of(kind)) == wanted:
                raise KilledError
            return journaled

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append", kill)
            with pytest.raises(KilledError):
                run_rank_comparison(config, run=run, resume=run.exists())
    again = run_rank_comparison(config, run=run, resume=True)
    assert numbers(run) == numbers(finished.run)
    assert path(again) == path(finished)
    assert list((run / "checkpoints").iterdir()) == []


def test_a_larger_budget_goes_on_where_a_smaller_one_stopped(config: ComparisonConfig, tmp_path: Path) -> None:
    one_rate = replace(config, learning_rates=(1e-3,), budget=SECONDS)
    stopped = run_rank_comparison(one_rate, run=tmp_path / "run")
    assert (ranks(stopped), stopped.recommendation.stopped) == ([2, 4], "budget")
    assert "1 would take 1 s, and 0 s are left" in path(stopped)
    on = run_rank_comparison(replace(one_rate, budget="1h"), run=tmp_path / "run", resume=True)
    assert (ranks(on), on.recommendation.stopped) == ([1, 2, 4], "plateau")
    # What was begun is not taken back.
    assert ranks(run_rank_comparison(one_rate, run=tmp_path / "run", resume=True)) == [1, 2, 4]
    with pytest.raises(UserError, match="strategy is escalate there and grid here"):
        run_rank_comparison(replace(one_rate, strategy="grid", budget=None), run=tmp_path / "run", resume=True)


def test_more_memory_goes_on_where_too_little_stopped(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costs(base: object, task: object, trials: Sequence[Trial], *settings: object) -> list[StepCost]:
        return [StepCost(trial.rank, SECONDS, 10**9) for trial in trials]

    monkeypatch.setattr("rankwise.compare.training.measure_costs", costs)
    one_rate = replace(config, learning_rates=(1e-3,))
    with monkeypatch.context() as patched:
        patched.setattr("rankwise.compare.growth.usable_bytes", lambda free: 0)
        stopped = run_rank_comparison(one_rate, run=tmp_path / "run")
        assert (ranks(stopped), stopped.recommendation.stopped) == ([2, 4], "memory")
        still = run_rank_comparison(one_rate, run=tmp_path / "run", resume=True)
        assert (still.recommendation, path(still)) == (stopped.recommendation, path(stopped))
    monkeypatch.setattr("rankwise.compare.growth.usable_bytes", lambda free: 10**12)
    on = run_rank_comparison(one_rate, run=tmp_path / "run", resume=True)
    assert (ranks(on), on.recommendation.stopped) == ([1, 2, 4], "plateau")


def test_another_margin_takes_another_path(config: ComparisonConfig, tmp_path: Path) -> None:
    one_rate = replace(config, learning_rates=(1e-3,))
    assert ranks(run_rank_comparison(one_rate, run=tmp_path / "run")) == [1, 2, 4]
    strict = run_rank_comparison(replace(one_rate, margin=1e-9), run=tmp_path / "run", resume=True)
    assert "margin 1e−09" in path(strict)
    assert "margin 5" not in path(strict)


def test_a_plan_is_that_of_the_start(config: ComparisonConfig) -> None:
    plan = plan_rank_comparison(config)
    assert plan.trials == 8
    assert any("of rank 2 and 4 to start with" in note for note in plan.notes)
