"""How a comparison goes, on standard error: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rankwise.compare.run import Observer, Planned, Stage
from rankwise.records import Trial
from rankwise.report.text import DASH, nll_text, seconds_text
from rankwise.train.loop import StepReport

_LINE_SECONDS = 15.0  # between two plain lines of one pack


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
    """What is known so far: the stage, and of every trial its step and losses."""

    stage: str = "starting"
    planned: Planned | None = None
    reports: dict[Trial, tuple[int, float, float | None]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    training_since: float = 0.0
    steps_before: int = 0

    def take(self, event: Stage | Planned | StepReport) -> None:
        if isinstance(event, Stage):
            self.stage = event.text
        elif isinstance(event, Planned):
            self.stage, self.planned, self.training_since = "training", event, time.monotonic()
            finished = [trial for pack in event.packs if pack.id in event.done for trial in pack.trials]
            self.reports = {trial: (event.steps, float("nan"), None) for trial in finished}
            self.steps_before = self.steps_taken
        else:
            validation = event.validation_nll or [None] * len(event.trials)
            for trial, train, held_out in zip(event.trials, event.train_nll, validation, strict=True):
                self.reports[trial] = (event.step, train, held_out)

    @property
    def steps_taken(self) -> int:
        return sum(step for step, _, _ in self.reports.values())

    @property
    def status(self) -> str:
        """One line: the stage, how far, how long."""
        elapsed = f"{seconds_text(round(time.monotonic() - self.started))} so far"
        if self.planned is None or self.stage != "training":
            return f"{self.stage} · {elapsed}"
        total = self.planned.steps * sum(len(pack.trials) for pack in self.planned.packs)
        taken = self.steps_taken
        parts = [f"training · {taken / total:.0%} · {elapsed}"]
        if taken > self.steps_before:
            pace = (time.monotonic() - self.training_since) / (taken - self.steps_before)
            parts.append(f"about {seconds_text(round(pace * (total - taken)))} left")
        return " · ".join(parts)

    def __rich__(self) -> RenderableType:
        if self.planned is None:
            return Text(self.status)
        table = Table(box=None, pad_edge=False)
        for header in ("rank", "trials", "step", "train NLL", "validation NLL"):
            table.add_column(header, justify="right")
        trials = [trial for pack in self.planned.packs for trial in pack.trials]
        for rank in sorted({trial.rank for trial in trials}):
            table.add_row(*self._row(rank, [trial for trial in trials if trial.rank == rank]))
        return Group(table, Text(self.status))

    def _row(self, rank: int, trials: list[Trial]) -> list[str]:
        assert self.planned is not None
        steps = self.planned.steps
        reports = [self.reports[trial] for trial in trials if trial in self.reports]
        current = [report for report in reports if report[0] < steps] or reports
        train = [train for _, train, _ in current if train == train]
        validation = [held_out for _, _, held_out in current if held_out is not None]
        return [
            str(rank),
            f"{sum(report[0] == steps for report in reports)}/{len(trials)}",
            f"{max((report[0] for report in current), default=0)}/{steps}",
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
        if not isinstance(event, StepReport) or now - self.told > _LINE_SECONDS:
            self.told = now
            self.console.print(self.board.status, markup=False, highlight=False, soft_wrap=True)
