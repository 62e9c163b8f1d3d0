"""How a comparison goes, on standard error: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rankwise.compare.run import Observer, Stage
from rankwise.compare.schedule import Leg
from rankwise.compare.training import Planned
from rankwise.records import Trial
from rankwise.report.text import DASH, nll_text, seconds_text
from rankwise.train.loop import StepReport

_LINE_SECONDS = 15.0  # between two plain lines of what goes on
_BAR = 60  # columns of a terminal
_STARTING, _TRAINING = Stage("starting"), Stage("training")


@contextmanager
def watched() -> Iterator[Observer]:
    """An observer that shows what it is told until the `with` block ends."""
    console = Console(stderr=True)
    board = _Board()
    if not console.is_terminal:
        yield _PlainLines(console, board)
        return
    with Live(board, console=console, refresh_per_second=4, transient=True):
        yield board.take


@dataclass
class _Board:
    """What is known so far: the stage, the leg in training, and of every trial its step and losses.

    Which trials go on is known at each rung only, so shares and times are those of the way to the next one.
    """

    stage: Stage = _STARTING
    planned: Planned | None = None
    reports: dict[Trial, tuple[int, float, float | None]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    training_since: float = 0.0

    def take(self, event: Stage | Planned | StepReport) -> None:
        if isinstance(event, Stage):
            self.stage = event
        elif isinstance(event, Planned):
            self.stage, self.planned, self.training_since = _TRAINING, event, time.monotonic()
            for trial in event.leg.trials:
                _, train, held_out = self.reports.get(trial, (0, float("nan"), None))
                self.reports[trial] = event.leg.start, train, held_out
        else:
            evaluations = event.evaluations or [None] * len(event.trials)
            for trial, train, evaluation in zip(event.trials, event.train_nll, evaluations, strict=True):
                self.reports[trial] = (event.step, train, None if evaluation is None else evaluation.nll)

    @property
    def status(self) -> str:
        """One line: the stage, how far, how long."""
        elapsed = f"{seconds_text(round(time.monotonic() - self.started))} so far"
        if self.planned is None or self.stage != _TRAINING:
            share = "" if self.stage.share is None else f" · {self.stage.share:.0%}"
            return f"{self.stage.text}{share} · {elapsed}"
        leg, steps = self.planned.leg, self.planned.steps
        total = (leg.stop - leg.start) * len(leg.trials)
        taken = sum(self.reports[trial][0] - leg.start for trial in leg.trials)
        trials = "1 trial" if len(leg.trials) == 1 else f"{len(leg.trials)} trials"
        parts = [f"training {trials} to step {leg.stop:,} of {steps:,} · {taken / total:.0%} · {elapsed}"]
        if taken:
            pace = (time.monotonic() - self.training_since) / taken
            parts.append(f"about {seconds_text(round(pace * (total - taken)))} to there")
        return " · ".join(parts)

    def __rich__(self) -> RenderableType:
        if self.stage.share is not None:
            return Group(ProgressBar(1.0, self.stage.share, width=_BAR), Text(self.status))
        if self.planned is None:
            return Text(self.status)
        table = Table(box=None, pad_edge=False)
        for header in ("rank", "trials", "step", "train NLL", "validation NLL"):
            table.add_column(header, justify="right")
        for rank in sorted({trial.rank for trial in self.planned.leg.trials}):
            table.add_row(*self._row(rank, self.planned.leg))
        return Group(table, Text(self.status))

    def _row(self, rank: int, leg: Leg) -> list[str]:
        reports = [self.reports[trial] for trial in leg.trials if trial.rank == rank]
        current = [report for report in reports if leg.start < report[0] < leg.stop] or reports
        train = [train for _, train, _ in current if train == train]
        validation = [held_out for _, _, held_out in current if held_out is not None]
        return [
            str(rank),
            f"{sum(step == leg.stop for step, _, _ in reports)}/{len(reports)}",
            f"{max(step for step, _, _ in current)}/{leg.stop}",
            nll_text(fmean(train)) if train else DASH,
            nll_text(fmean(validation)) if validation else DASH,
        ]


@dataclass
class _PlainLines:
    """The board's status line, when the stage changes and now and then."""

    console: Console
    board: _Board
    told: float = 0.0

    def __call__(self, event: Stage | Planned | StepReport) -> None:
        self.board.take(event)
        now = time.monotonic()
        goes_on = isinstance(event, StepReport) or (isinstance(event, Stage) and event.share is not None)
        if not goes_on or now - self.told > _LINE_SECONDS:
            self.told = now
            self.console.print(self.board.status, markup=False, highlight=False, soft_wrap=True)
