"""How a comparison goes, on standard error: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rankwise.compare.backends import Workers
from rankwise.compare.observer import Observer, Stage, Told
from rankwise.progress.board import Board, Row
from rankwise.report.text import DASH, nll_text
from rankwise.train.loop import StepReport

_LINE_SECONDS = 15.0  # between two plain lines of what goes on
_BAR = 60  # columns of a terminal


@contextmanager
def watched() -> Iterator[Observer]:
    """An observer that shows what it is told until the `with` block ends."""
    console = Console(stderr=True)
    board = Board()
    if not console.is_terminal:
        yield PlainLines(board)
        return
    with Live(LiveTable(board), console=console, refresh_per_second=4, transient=True):
        yield board.take


@dataclass(frozen=True)
class LiveTable:
    """The board's rows and its status line; where a terminal is narrow, dropped learning rates take more lines."""

    board: Board

    def __rich__(self) -> RenderableType:
        status = Text(self.board.status)
        if (share := self.board.stage.share) is not None:
            lines = Table.grid()  # a bar does not end its line
            lines.add_row(ProgressBar(1.0, share, width=_BAR))
            lines.add_row(status)
            return lines
        if not (rows := self.board.rows):
            return status
        table = Table(box=None, pad_edge=False)
        for header in ("rank", "trials", "step", "train\nNLL", "validation\nNLL"):
            table.add_column(header, justify="right", no_wrap=True)
        table.add_column("dropped\nlearning rates")
        for row in rows:
            table.add_row(
                row.name,
                f"{row.done}/{row.trials}",
                f"{row.step}/{row.stop}",
                _nll(row.train_nll),
                _nll(row.validation_nll),
                _rates(row.dropped),
            )
        return Group(table, status)


@dataclass
class PlainLines:
    """The board's status line and its rows, when the stage changes and now and then."""

    board: Board
    told: float = 0.0

    def __call__(self, event: Told) -> None:
        self.board.take(event)
        now = time.monotonic()
        goes_on = isinstance(event, StepReport | Workers) or (isinstance(event, Stage) and event.share is not None)
        if not goes_on or now - self.told > _LINE_SECONDS:
            self.told = now
            # A full disk, or a pipe whose reader has left, is no reason to end what trains.
            with suppress(OSError):
                print(self.board.status, *map(_line, self.board.rows), sep="\n", file=sys.stderr, flush=True)


def _line(row: Row) -> str:
    losses = f"train NLL {_nll(row.train_nll)}, validation NLL {_nll(row.validation_nll)}"
    dropped = f", dropped learning rates {_rates(row.dropped)}" if row.dropped else ""
    return f"  rank {row.name}: step {row.step}/{row.stop}, {losses}{dropped}"


def _nll(nll: float | None) -> str:
    return DASH if nll is None else nll_text(nll)


def _rates(rates: tuple[float, ...]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)
