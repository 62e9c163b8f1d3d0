"""What a comparison tells its trackers: each trial is a run, and so is the answer.

Curves are live, since that is what a tracker is for: their points are those that the loop reports, some a second, and
every evaluation. A run that goes on after a kill trains a few steps again, which a tracker has already; so each is
asked for the last step that it has of a trial, and told what lies beyond. What did not reach it is made up for from
the curve on disk when the trial is over; so a tracker may be named late, or again after it failed. Outcomes are
journaled once they are told, and nothing is ended twice.

A tracker that fails is left alone from then on, with a line on standard error. No number depends on it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean

from rankwise.compare.directory import RunDirectory
from rankwise.compare.journal import Journal
from rankwise.compare.observer import Planned
from rankwise.compare.trackers import connect
from rankwise.compare.trackers.tracker import SUMMARY, Group, Points, Tracker, Values
from rankwise.errors import reason_of
from rankwise.records import Evaluation, RankComparison, Trial, TrialResult
from rankwise.train.loop import REPORTED_STEPS, StepReport

_PAUSE = 20  # times as long as telling a tracker took: a distant server must not slow the training

_log = logging.getLogger(__name__)


@dataclass
class _Listener:
    """One tracker, and what it has: the last step of each run that is open."""

    name: str
    tracker: Tracker
    last_steps: dict[str, int] = field(default_factory=dict)
    not_before: float = 0.0

    def open(self, run: str, params: Values) -> None:
        if run not in self.last_steps:
            self.last_steps[run] = self.tracker.open(run, params)

    def add(self, run: str, points: Points) -> None:
        beyond = {step: figures for step, figures in points.items() if step > self.last_steps[run]}
        if beyond:
            self.tracker.log(run, beyond)
            self.last_steps[run] = max(beyond)

    def end(self, run: str, params: Values, points: Points, outcome: Values) -> None:
        self.open(run, params)
        self.add(run, points)
        self.tracker.close(run, outcome)
        del self.last_steps[run]

    def interrupt(self) -> None:
        while self.last_steps:
            run, _ = self.last_steps.popitem()
            self.tracker.close(run, {"status": "interrupted"})


class Reporting:
    """The trackers of one comparison; without any, nothing happens.

    `shared` says what is compared, `params` what a trial is made of. Raises `UserError` where a tracker cannot be used.
    """

    def __init__(
        self,
        names: Iterable[str],
        directory: RunDirectory,
        journal: Journal,
        *,
        shared: Values,
        params: Callable[[Trial], Values],
    ) -> None:
        self._directory = directory
        self._journal = journal
        self._shared = shared
        self._params = params
        self._trials: dict[str, Trial] = {}  # that were at a step, by their runs
        self._listeners = [_Listener(name, connect(name, _group(directory, journal))) for name in names]

    def step(self, report: StepReport) -> None:
        """A pack is at a step."""
        self._tell(self._listeners, lambda listener: self._step(listener, report))

    def leg(self, planned: Planned) -> None:
        """A leg begins: trials that go no further are over, and an open run takes files and memory of its tracker."""
        statuses = {trial: status for event in self._journal.of("trained") for trial, status in event["status"].items()}
        for run in {run: None for listener in self._listeners for run in listener.last_steps}:
            trial, status = self._trials[run], statuses.get(run)
            if status is not None and (status != "dropped" or trial in planned.dropped):
                self._over(self._directory.read_result(trial, status))

    def settle(self, results: Mapping[Trial, TrialResult]) -> None:
        """All trials are over."""
        for result in results.values():
            self._over(result)

    def conclude(self, comparison: RankComparison) -> None:
        """There is an answer, a run; one that is given after the comparison has grown is another."""
        look = len(self._journal.of("decided"))
        run = SUMMARY if look == 1 else f"{SUMMARY}-{look}"
        self._end(run, self._shared, rows(comparison), outcome(comparison))

    def close(self) -> None:
        """What is open by now was interrupted; a later start goes on with it."""
        self._tell(self._listeners, _Listener.interrupt)

    def _over(self, result: TrialResult) -> None:
        self._end(result.trial.id, self._of(result.trial), curve(result), {"status": result.status})

    def _of(self, trial: Trial) -> Values:
        return {**asdict(trial), **self._params(trial), **self._shared}

    def _step(self, listener: _Listener, report: StepReport) -> None:
        evaluations = report.evaluations or (None,) * len(report.trials)
        now = [one if one and one.step == report.step else None for one in evaluations]
        if not any(now) and time.monotonic() < listener.not_before:
            return
        for trial in report.trials:
            self._trials[trial.id] = trial
            listener.open(trial.id, self._of(trial))
        started = time.monotonic()
        for trial, nll, evaluation in zip(report.trials, report.train_nll, now, strict=True):
            listener.add(trial.id, {report.step: _figures(nll, evaluation)})
        ended = time.monotonic()
        listener.not_before = ended + _PAUSE * (ended - started)

    def _end(self, run: str, params: Values, points: Points, outcome: Values) -> None:
        status = outcome["status"]
        known = {event["to"]: event["status"] for event in self._journal.of("reported") if event["run"] == run}
        others = [
            listener for listener in self._listeners if run in listener.last_steps or known.get(listener.name) != status
        ]
        for listener in self._tell(others, lambda listener: listener.end(run, params, points, outcome)):
            self._journal.append("reported", to=listener.name, run=run, status=status)

    def _tell(self, listeners: Iterable[_Listener], tell: Callable[[_Listener], None]) -> list[_Listener]:
        """Those that were told; the others have failed, and are left out from now on."""
        done = []
        for listener in tuple(listeners):
            try:
                tell(listener)
            # A back end's errors are of any kind, and hours of training are worth more than a picture of them.
            except Exception as error:
                self._listeners.remove(listener)
                _log.warning(
                    "report-to: %s failed (%s); the comparison goes on without it", listener.name, reason_of(error)
                )
            else:
                done.append(listener)
        return done


def curve(result: TrialResult) -> Points:
    """A trial's curve as it is told live: train losses are means over the last few steps."""
    losses, at = result.train_nll, {evaluation.step: evaluation for evaluation in result.evaluations}
    steps = sorted({*range(REPORTED_STEPS, len(losses) + 1, REPORTED_STEPS), *at})
    return {step: _figures(fmean(losses[max(0, step - REPORTED_STEPS) : step]), at.get(step)) for step in steps}


def rows(comparison: RankComparison) -> Points:
    """The table's figures by rank, which a tracker draws as it does steps; those of other scalings have its name."""
    points = {0: _numbers(asdict(comparison.baseline))}
    for row in sorted(comparison.experiments, key=lambda row: row.rank):
        scaling = "rslora/" if row.use_rslora else "alpha/rank/"
        prefix = "" if row.use_rslora == comparison.experiments[0].use_rslora else scaling
        figures = {f"{prefix}{name}": value for name, value in _numbers(asdict(row)).items() if name != "rank"}
        points[row.rank] = points.get(row.rank, {}) | figures
    return points


def outcome(comparison: RankComparison) -> Values:
    """The answer, and the row that has no rank."""
    answer = comparison.recommendation
    full = {} if comparison.full is None else _numbers(asdict(comparison.full))
    return {
        "status": answer.status,
        "rank": "none" if answer.rank is None else answer.rank,
        "reason": answer.reason,
        **{f"full/{name}": value for name, value in full.items()},
    }


def _figures(train_nll: float, evaluation: Evaluation | None) -> dict[str, float]:
    figures = {"train/nll": train_nll}
    if evaluation is not None:
        figures |= {"validation/nll": evaluation.nll, "validation/accuracy": evaluation.accuracy}
    return figures


def _numbers(record: Mapping[str, object]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _group(directory: RunDirectory, journal: Journal) -> Group:
    """The same at every start of the run, wherever it lies by then."""
    if not journal.of("grouped"):
        journal.append("grouped", name=directory.name, id=secrets.token_hex(4))
    grouped = journal.of("grouped")[0]
    return Group(grouped["name"], grouped["id"], directory.path)
