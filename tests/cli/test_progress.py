from __future__ import annotations

import math

from rich.console import Console

from rankwise.cli.progress import _Board
from rankwise.compare.run import Stage
from rankwise.compare.schedule import Leg
from rankwise.compare.training import Planned
from rankwise.records import Evaluation, Trial
from rankwise.train.loop import StepReport


def trial(rank: int, seed: int) -> Trial:
    return Trial(rank, float(rank), False, 1e-3, seed)


TRIALS = tuple(trial(rank, seed) for seed in (0, 1) for rank in (4, 16))


def shown(board: _Board) -> list[list[str]]:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(board)
    return [line.split() for line in captured.get().splitlines()]


def test_the_share_and_the_time_left_are_those_to_the_next_rung() -> None:
    """Which trials go on from there is not known, so a share of the whole would be a guess."""
    board = _Board()
    board.take(Stage("loading the base model"))
    assert board.status.startswith("loading the base model · ")
    board.take(Planned(Leg(TRIALS, 50, 100), steps=200))
    assert board.status.startswith("training 4 trials to step 100 of 200 · 0% · ")
    assert "to there" not in board.status
    board.take(StepReport(TRIALS[:2], 100, (0.5, 0.4), (Evaluation(100, 0.6, 0.7), Evaluation(100, 0.5, 0.8))))
    assert board.status.startswith("training 4 trials to step 100 of 200 · 50% · ")
    assert board.status.endswith("to there")
    board.take(StepReport(TRIALS[2:], 75, (0.3, 0.2), None))
    assert board.status.startswith("training 4 trials to step 100 of 200 · 75% · ")


def test_a_rank_shows_its_trials_in_training_and_then_the_next_leg() -> None:
    board = _Board()
    board.take(Planned(Leg(TRIALS, 0, 100), steps=200))
    board.take(StepReport(TRIALS[:2], 100, (0.5, 0.4), (Evaluation(100, 0.6, 0.7), Evaluation(100, 0.5, 0.8))))
    board.take(StepReport(TRIALS[2:], 50, (0.3, math.nan), None))
    assert shown(board)[1:3] == [["4", "1/2", "50/100", "0.300", "–"], ["16", "1/2", "50/100", "–", "–"]]
    board.take(Planned(Leg((TRIALS[0],), 100, 200), steps=200))
    assert shown(board)[1] == ["4", "0/1", "100/200", "0.500", "0.600"]
    assert board.status.startswith("training 1 trial to step 200 of 200 · 0% · ")
