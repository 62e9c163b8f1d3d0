"""MLflow: a parent run for the comparison, a nested run for each trial.

The store is the one that MLflow's own environment variables name. Runs are found again by a tag, since MLflow makes
their ids. Its client is used and not its fluent interface, whose one active run is the caller's.
"""

from __future__ import annotations

import os
import time

from rankwise.compare.trackers.tracker import SUMMARY, Group, Points, Values

_TAG = "rankwise.run"
_AT_ONCE = 1_000  # metrics that a server takes in one request


class MLflow:
    def __init__(self, group: Group) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._group = group
        self._ids: dict[str, str] = {}  # MLflow's, by ours
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or group.name
        experiment = self._client.get_experiment_by_name(name)
        self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._parent = self._found(SUMMARY) or self._created(SUMMARY, name=group.label)

    def open(self, run: str, params: Values) -> int:
        from mlflow.entities import Param

        last = -1
        found = self._found(run)
        if found:
            last = self._last_step(found)
            self._client.update_run(found, status="RUNNING")
        self._ids[run] = found or self._created(run, parent=self._parent)
        self._client.log_batch(self._ids[run], params=[Param(name, str(value)) for name, value in params.items()])
        return last

    def log(self, run: str, points: Points) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for step, of in points.items() for name, value in of.items()]
        for first in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._ids[run], metrics=metrics[first : first + _AT_ONCE])

    def close(self, run: str, outcome: Values) -> None:
        for name, value in outcome.items():
            self._client.set_tag(self._ids[run], name, str(value))
        self._client.set_terminated(self._ids.pop(run))

    def _found(self, run: str) -> str | None:
        query = f"tags.`{_TAG}` = '{self._group.id}-{run}'"
        runs = self._client.search_runs([self._experiment], filter_string=query, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _created(self, run: str, *, name: str | None = None, parent: str | None = None) -> str:
        tags = {_TAG: f"{self._group.id}-{run}"} | ({"mlflow.parentRunId": parent} if parent else {})
        created = self._client.create_run(self._experiment, tags=tags, run_name=name or run)
        return str(created.info.run_id)

    def _last_step(self, run_id: str) -> int:
        names = self._client.get_run(run_id).data.metrics
        return max(
            (metric.step for name in names for metric in self._client.get_metric_history(run_id, name)), default=-1
        )
