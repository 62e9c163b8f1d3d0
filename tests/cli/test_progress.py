"""What the command line shows while a comparison goes on."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from rankwise.cli.progress import LiveTable, watched
from rankwise.compare.backends import Workers
from rankwise.compare.observer import Stage
from rankwise.progress.board import Board
from rankwise.records import Evaluation
from rankwise.train.loop import StepReport
from tests.progress.events import FIRST_PACK, SECOND_LEG, SECOND_PACK, planned, trial

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d[;m]")
# As much as a table may hold: six-digit ranks and steps, a scaling, both edges' added rates dropped.
RATES = (1e-05, 3e-05, 0.0001, 0.000333)
TRIALS = tuple(trial(rank, seed, 1e-3, rslora=rank == 1024) for rank in (4, 1024) for seed in range(12))
WIDE = planned(TRIALS, 5000, 15000, tuple(trial(4, 0, rate) for rate in RATES))
WIDE_REPORT = StepReport(TRIALS, 12500, (0.123,) * 24, (Evaluation(12500, 12.456, 0.5),) * 24)


def rendered(board: Board, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(LiveTable(board))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_figure_is_shown_at_every_width(width: int) -> None:
    board = Board()
    board.take(WIDE)
    board.take(WIDE_REPORT)
    lines = rendered(board, width)
    assert max(map(cell_len, lines)) <= width
    first, second = (line.split() for line in lines if "12500/15000" in line)
    assert first[:5] == ["4", "0/12", "12500/15000", "0.123", "12.456"]
    assert second == ["1024", "rs", "0/12", "12500/15000", "0.123", "12.456"]
    text = " ".join(" ".join(lines).split())
    for rate in RATES:
        assert f"{rate:g}" in text
    for head in ("rank", "trials", "step", "train", "validation", "NLL", "dropped", "learning", "rates"):
        assert head in text
    assert "training 24 trials to step 15,000 of 200 · 75% · " in text
    assert "examples/s · about " in text
    assert "…" not in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_stage_with_a_share_has_a_bar(width: int) -> None:
    board = Board()
    board.take(Stage("scoring test", 0.5))
    bar, status = rendered(board, width)
    assert cell_len(bar) == 60
    assert status.startswith("scoring test · 50% · ")


def test_where_there_is_no_terminal_lines_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with watched() as observe:
        observe(Stage("reading data"))
        observe(SECOND_LEG)
        observe(FIRST_PACK)
        observe(planned(SECOND_LEG.leg.trials[:2], 100, 200, SECOND_LEG.dropped))
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert "\x1b" not in printed.err
    assert [line.split(" · ")[0] for line in lines] == [
        "reading data",
        "training 4 trials to step 100 of 200",
        "  rank 4: step 50/100, train NLL –, validation NLL –",
        "  rank 16: step 50/100, train NLL –, validation NLL –, dropped learning rates 0.0001, 0.003",
        "training 2 trials to step 200 of 200",
        "  rank 4: step 100/200, train NLL 0.500, validation NLL 0.600",
        "  rank 16: step 100/200, train NLL 0.400, validation NLL 0.500, dropped learning rates 0.0001, 0.003",
    ]


def full_disk() -> TextIO:
    return Path("/dev/full").open("w", buffering=1)


def nobody() -> TextIO:
    """A pipe whose reader has left, as that of `head`."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("stream", [nobody, full_disk])
def test_lines_that_cannot_be_written_end_nothing(
    stream: Callable[[], TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = stream()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", errors)
        with watched() as observe:
            for event in (Stage("reading data"), SECOND_LEG, FIRST_PACK, Stage("deciding")):
                observe(event)
    with pytest.raises(OSError, match=r"Broken pipe|No space left"):
        errors.close()


def test_packs_that_train_side_by_side_are_counted_together() -> None:
    board = Board()
    for event in (SECOND_LEG, Workers(1), FIRST_PACK, Workers(2), SECOND_PACK):
        board.take(event)
    assert board.heading == "training 4 trials on 2 workers to step 100 of 200"
    assert board.done == (2 * 50 + 2 * 25) * SECOND_LEG.examples_per_step
    board.take(Workers(1))
    assert board.heading == "training 4 trials on 1 worker to step 100 of 200"


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_honoured(
    no_color: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    with watched() as observe:
        observe(Stage("scoring test", 0.5))
    shown = capsys.readouterr().err
    assert "scoring test · 50%" in shown
    assert (COLOUR.search(shown) is None) == no_color
