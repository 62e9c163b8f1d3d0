"""What is known of a comparison in progress, from the events that its observer is told.

Which trials go on is known at each rung only, so shares and times are those of the way to the next one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rankwise.compare.backends import Workers
from rankwise.compare.observer import Planned, Stage, Told
from rankwise.records import Trial
from rankwise.report.text import seconds_text

_STARTING, _TRAINING = Stage("starting"), Stage("training")


@dataclass(frozen=True)
class Row:
    """Where the trials of a rank under one scaling stand on the way to step `stop`; `done` of them have come there.

    Step and losses are those of the trials that are training, the losses means that are None where there are none
    yet. `dropped` are the learning rates that went no further than a rung before.
    """

    name: str
    done: int
    trials: int
    step: int
    stop: int
    train_nll: float | None
    validation_nll: float | None
    dropped: tuple[float, ...]


@dataclass
class Board:
    """The stage, the leg in training, and of every trial its step and losses; `workers` are those of a cluster."""

    stage: Stage = _STARTING
    planned: Planned | None = None
    reports: dict[Trial, tuple[int, float, float | None]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    training_since: float = 0.0
    workers: int = 0

    def take(self, event: Told) -> None:
        if isinstance(event, Stage):
            self.stage = event
        elif isinstance(event, Workers):
            self.workers = event.count
        elif isinstance(event, Planned):
            for trial in event.leg.trials:
                _, train, held_out = self.reports.get(trial, (0, float("nan"), None))
                self.reports[trial] = event.leg.start, train, held_out
            # Last, since another thread may be drawing.
            self.training_since, self.planned, self.stage = time.monotonic(), event, _TRAINING
        else:
            evaluations = event.evaluations or [None] * len(event.trials)
            for trial, train, evaluation in zip(event.trials, event.train_nll, evaluations, strict=True):
                self.reports[trial] = (event.step, train, None if evaluation is None else evaluation.nll)

    @property
    def training(self) -> Planned | None:
        """The leg in training; None while something else goes on."""
        return self.planned if self.stage == _TRAINING else None

    @property
    def heading(self) -> str:
        """What goes on."""
        if (planned := self.training) is None:
            return self.stage.text
        count = len(planned.leg.trials)
        trials = "1 trial" if count == 1 else f"{count} trials"
        on = "" if self.workers == 0 else f" on {self.workers} worker{'' if self.workers == 1 else 's'}"
        return f"training {trials}{on} to step {planned.leg.stop:,} of {planned.steps:,}"

    @property
    def total(self) -> float | None:
        """Of training the examples that the leg's trials see, else 1; None where no share can be told."""
        if (planned := self.training) is None:
            return None if self.stage.share is None else 1.0
        leg = planned.leg
        return (leg.stop - leg.start) * len(leg.trials) * planned.examples_per_step

    @property
    def done(self) -> float:
        """How much of the total."""
        if (planned := self.training) is None:
            return self.stage.share or 0.0
        steps = sum(self.reports[trial][0] - planned.leg.start for trial in planned.leg.trials)
        return steps * planned.examples_per_step

    @property
    def status(self) -> str:
        """One line: what goes on, how far, how long."""
        total, done = self.total, self.done
        parts = [self.heading] if total is None else [self.heading, f"{done / total:.0%}"]
        parts.append(f"{seconds_text(round(time.monotonic() - self.started))} so far")
        spent = time.monotonic() - self.training_since
        if self.training is not None and total is not None and done and spent:
            rate = done / spent
            parts += [f"{rate:,.0f} examples/s", f"about {seconds_text(round((total - done) / rate))} to there"]
        return " · ".join(parts)

    @property
    def rows(self) -> list[Row]:
        """A row for each rank in training, under each scaling."""
        if (planned := self.training) is None:
            return []
        curves: dict[tuple[int, bool], list[Trial]] = {}
        for trial in sorted(planned.leg.trials, key=lambda trial: (trial.rank, trial.use_rslora)):
            curves.setdefault((trial.rank, trial.use_rslora), []).append(trial)
        return [self._row(trials, planned) for trials in curves.values()]

    def _row(self, trials: Sequence[Trial], planned: Planned) -> Row:
        leg, one = planned.leg, trials[0]
        reports = [self.reports[trial] for trial in trials]
        current = [report for report in reports if leg.start < report[0] < leg.stop] or reports
        train = [train for _, train, _ in current if train == train]
        validation = [held_out for _, _, held_out in current if held_out is not None]
        dropped = {
            trial.learning_rate
            for trial in planned.dropped
            if (trial.rank, trial.use_rslora) == (one.rank, one.use_rslora)
        }
        return Row(
            name=f"{one.rank}{' rs' if one.use_rslora else ''}",
            done=sum(step == leg.stop for step, _, _ in reports),
            trials=len(reports),
            step=max(step for step, _, _ in current),
            stop=leg.stop,
            train_nll=fmean(train) if train else None,
            validation_nll=fmean(validation) if validation else None,
            dropped=tuple(sorted(dropped)),
        )
