"""TensorBoard: event files in RUN/tensorboard, a directory for each run.

Written with TensorBoard's own writer: torch's wraps the same one, and puts hyperparameters into a run of their own.
"""

from __future__ import annotations

import time
from typing import Any

from rankwise.compare.trackers.tracker import Group, Points, Values


class TensorBoard:
    def __init__(self, group: Group) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter
        self._directory = group.directory / "tensorboard"
        self._open: dict[str, Any] = {}

    def open(self, run: str, params: Values) -> int:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        path = self._directory / run
        last = _last_step(str(path)) if path.exists() else -1
        self._open[run] = self._writer(str(path))
        self._write(run, hparams_pb(dict(params), trial_id=run), max(last, 0))
        return last

    def log(self, run: str, points: Points) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for step, figures in points.items():
            values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
            self._write(run, Summary(value=values), step)
        self._open[run].flush()

    def close(self, run: str, outcome: Values) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        for name, value in outcome.items():
            self._write(run, text_pb(name, str(value)), 0)
        self._open.pop(run).close()

    def _write(self, run: str, summary: Any, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._open[run].add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _last_step(directory: str) -> int:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(directory).Reload()
    return max((event.step for name in events.Tags()["scalars"] for event in events.Scalars(name)), default=-1)
