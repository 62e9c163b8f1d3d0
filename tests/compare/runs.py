"""What runs leave behind, for the tests that compare one with another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class KilledError(Exception):
    pass


def journal(run: Path, event: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [one for one in events if one["event"] == event]


def numbers(run: Path) -> dict[str, Any]:
    """Every number that a run leaves but times and memory."""
    experiments = json.loads((run / "experiments.json").read_text())["experiments"]
    for experiment in experiments:
        del experiment["training_time_seconds"], experiment["peak_memory_bytes"]
    return {"experiments": experiments, "plans": journal(run, "plan")} | {
        str(file.relative_to(run)): file.read_bytes()
        for file in sorted(run.rglob("*"))
        if file.suffix in (".safetensors", ".parquet")
    }
