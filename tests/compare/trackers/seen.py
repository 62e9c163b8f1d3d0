"""What back ends show of a group, read with their own means: the other half of the contract suite."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rankwise.compare.trackers.tracker import Group


@dataclass
class Seen:
    """One run. Params and outcome are texts; each figure is a list of (step, value), in the order it came in."""

    params: dict[str, str] = field(default_factory=dict)
    figures: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    outcome: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, step: int, value: float) -> None:
        self.figures.setdefault(name, []).append((step, value))


def in_tensorboard(group: Group) -> dict[str, Seen]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    runs = {}
    for path in (group.directory / "tensorboard").iterdir():
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        seen = runs[path.name] = Seen()
        for name in events.Tags()["scalars"]:
            seen.figures[name] = sorted((event.step, event.value) for event in events.Scalars(name))
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        for name, value in HParamsPluginData.FromString(content).session_start_info.hparams.items():
            one = getattr(value, value.WhichOneof("kind"))
            seen.params[name] = f"{one:g}" if isinstance(one, float) else str(one)
        for name in set(events.Tags()["tensors"]) - {"_hparams_/session_start_info"}:
            seen.outcome[name] = events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
    return runs


def in_mlflow(group: Group) -> dict[str, Seen]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(group.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    found = [run for run in found if run.data.tags["rankwise.run"].startswith(group.id)]
    parents = {run.info.run_id for run in found if run.info.run_name == group.label}
    runs = {}
    for run in found:
        if run.info.run_id not in parents:
            assert run.data.tags["mlflow.parentRunId"] in parents
        seen = runs["comparison" if run.info.run_id in parents else run.info.run_name] = Seen(params=run.data.params)
        for name in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, name):
                seen.add(name, metric.step, metric.value)
        seen.outcome = {
            name: value for name, value in run.data.tags.items() if not name.startswith(("mlflow.", "rankwise."))
        }
    assert len(runs) == len(found), "two runs of one name"
    return runs


def in_trackio(group: Group) -> dict[str, Seen]:
    from trackio.sqlite_storage import SQLiteStorage

    runs: dict[str, Seen] = {}
    for record in SQLiteStorage.get_run_records("rankwise"):
        name, run_id = record["name"], record["id"]
        config = SQLiteStorage.get_run_config("rankwise", name, run_id=run_id)
        if config["_Group"] != group.label:
            continue
        own = name.removesuffix(f"-{group.id}")
        assert own not in runs, "two runs of one name"
        seen = runs[own] = Seen({name: str(value) for name, value in config.items() if name[0] != "_"})
        for entry in SQLiteStorage.get_logs("rankwise", name, run_id=run_id):
            step = entry.pop("step")
            del entry["timestamp"]
            for figure, value in entry.items():
                # What a run ended with is its last row.
                if "status" in entry:
                    seen.outcome[figure] = str(value)
                else:
                    seen.add(figure, step, value)
    return runs


def in_wandb(group: Group) -> dict[str, Seen]:
    """From the files that W&B leaves offline, which `wandb sync` would send."""
    runs: dict[str, Seen] = {}
    for records in _wandb_files(group):
        (run,) = {record.run.run_id: record.run for record in records if record.HasField("run")}.values()
        assert (run.project, run.run_group, run.run_id) == ("rankwise", group.label, f"{group.id}-{run.display_name}")
        seen = runs.setdefault(run.display_name, Seen())
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        seen.params = {name: str(value) for name, value in config.items() if name != "_wandb"}
        for record in records:
            for name, value in _wandb_items(record.history.item).items():
                seen.add(name, record.history.step.num, float(json.loads(value)))
        for record in records:
            for name, value in _wandb_items(record.summary.update).items():
                if name not in seen.figures:
                    seen.outcome[name] = str(json.loads(value))
    return runs


def _wandb_items(items: Iterable[Any]) -> dict[str, str]:
    named = {".".join(item.nested_key) or item.key: item.value_json for item in items}
    return {name: value for name, value in named.items() if name[0] != "_"}


def _wandb_files(group: Group) -> list[list[Any]]:
    """The records of each file, oldest first; W&B's service writes the last ones when a run is over."""
    from wandb.proto.wandb_internal_pb2 import Record

    until = time.monotonic() + 20
    while True:
        files = sorted((group.directory / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
        read = [[Record.FromString(content) for content in _wandb_records(file.read_bytes())] for file in files]
        last = {file.name: records for file, records in zip(files, read, strict=True)}  # of each run
        ended = all(any(record.HasField("exit") for record in records) for records in last.values())
        if ended or time.monotonic() > until:
            return [records for records in read if any(record.HasField("run") for record in records)]
        time.sleep(0.1)


def _wandb_records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log format after a header of 7 bytes: blocks of 32 KiB, of records in one piece or several."""
    position, pieces = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        pieces += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield pieces
            pieces = b""
