from __future__ import annotations

import math
import time

import pytest

from rankwise.compare.observer import Stage
from rankwise.progress.board import Board, Row
from rankwise.records import Evaluation, Trial
from rankwise.train.loop import StepReport
from tests.progress.events import DROPPED, FIRST_PACK, SECOND_LEG, SECOND_PACK, TRIALS, planned, trial


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as its only item."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_share_and_the_time_left_are_those_to_the_next_rung(clock: list[float]) -> None:
    """Which trials go on from there is not known, so a share of the whole would be a guess."""
    board = Board(started=clock[0])
    board.take(Stage("loading the base model"))
    assert board.status == "loading the base model · 0 s so far"
    clock[0] += 10
    board.take(SECOND_LEG)
    assert board.status == "training 4 trials to step 100 of 200 · 0% · 10 s so far"
    clock[0] += 10
    board.take(FIRST_PACK)
    # Two of four trials have taken 50 steps of 32 examples each.
    assert board.status == (
        "training 4 trials to step 100 of 200 · 50% · 20 s so far · 320 examples/s · about 10 s to there"
    )
    clock[0] += 10
    board.take(SECOND_PACK)
    assert board.status.endswith(" · 75% · 30 s so far · 240 examples/s · about 7 s to there")
    assert (board.done, board.total) == (4800, 6400)


def test_a_board_can_be_drawn_at_any_moment() -> None:
    """By the thread of a live table, also in the midst of being told of a leg."""

    class Drawn(dict[Trial, tuple[int, float, float | None]]):
        def __setitem__(self, trial: Trial, report: tuple[int, float, float | None]) -> None:
            super().__setitem__(trial, report)
            drawn.append((board.status, board.rows))

    drawn: list[tuple[str, list[Row]]] = []
    board = Board(reports=Drawn())
    board.take(planned(TRIALS, 0, 100))
    board.take(SECOND_LEG)
    assert len(drawn) == len(TRIALS) + len(SECOND_LEG.leg.trials)


def test_the_rate_is_that_of_this_leg(clock: list[float]) -> None:
    board = Board()
    board.take(planned(TRIALS, 0, 50))
    clock[0] += 1000
    board.take(StepReport(TRIALS, 50, (0.5,) * 4, (Evaluation(50, 0.5, 0.5),) * 4))
    board.take(SECOND_LEG)
    assert "examples/s" not in board.status
    clock[0] += 1
    board.take(StepReport(TRIALS, 60, (0.5,) * 4, None))
    assert f"{4 * 10 * 32:,} examples/s" in board.status


def test_a_stage_with_a_share_is_not_training() -> None:
    board = Board()
    board.take(SECOND_LEG)
    board.take(Stage("scoring test", 0.25))
    assert board.status.startswith("scoring test · 25% · ")
    assert (board.rows, board.done, board.total) == ([], 0.25, 1.0)
    board.take(Stage("deciding"))
    assert board.total is None


def test_a_rank_shows_its_trials_in_training_and_then_the_next_leg() -> None:
    board = Board()
    board.take(planned(TRIALS, 0, 100))
    board.take(FIRST_PACK)
    board.take(StepReport(TRIALS[2:], 50, (0.3, math.nan), None))
    assert board.rows == [Row("4", 1, 2, 50, 100, 0.3, None, ()), Row("16", 1, 2, 50, 100, None, None, ())]
    board.take(planned((TRIALS[0],), 100, 200))
    assert board.rows == [Row("4", 0, 1, 100, 200, 0.5, 0.6, ())]
    assert board.status.startswith("training 1 trial to step 200 of 200 · 0% · ")


def test_a_rank_shows_the_learning_rates_that_it_dropped_under_its_scaling() -> None:
    board = Board()
    stabilised = trial(16, 0, rslora=True)
    board.take(planned((*TRIALS, stabilised), 50, 100, (*DROPPED, trial(16, 0, 1.0, rslora=True))))
    assert {row.name: row.dropped for row in board.rows} == {"4": (), "16": (1e-4, 3e-3), "16 rs": (1.0,)}
