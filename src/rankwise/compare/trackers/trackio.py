"""Trackio: a group for the comparison, a run for each trial, side by side in one process.

The project is TRACKIO_PROJECT, else `rankwise`; where it lies, Trackio's own environment variables say. Runs are found
again by their names, so these have the comparison's id in them.
"""

from __future__ import annotations

import contextvars
import io
import os
from contextlib import redirect_stdout
from typing import Any

from rankwise.compare.trackers.tracker import Group, Points, Values


class Trackio:
    def __init__(self, group: Group) -> None:
        import trackio

        self._init = trackio.init
        self._group = group
        self._runs: dict[str, Any] = {}

    def open(self, run: str, params: Values) -> int:
        # `init` finishes the run that its context has, which with a context of its own is none.
        with redirect_stdout(io.StringIO()):
            self._runs[run] = contextvars.Context().run(
                self._init,
                project=os.environ.get("TRACKIO_PROJECT") or "rankwise",
                name=f"{run}-{self._group.id}",
                group=self._group.label,
                config=dict(params),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return self._last_step(run)

    def log(self, run: str, points: Points) -> None:
        for step, figures in points.items():
            self._runs[run].log(dict(figures), step=step)

    def close(self, run: str, outcome: Values) -> None:
        self._runs[run].log(dict(outcome), step=max(self._last_step(run), 0))
        with redirect_stdout(io.StringIO()):
            self._runs.pop(run).finish()

    def _last_step(self, run: str) -> int:
        return int(self._runs[run]._next_step) - 1  # Trackio tells it by no public name
