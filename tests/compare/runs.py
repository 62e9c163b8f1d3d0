"""What runs leave behind, for the tests that compare one with another; and what spares a run its measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rankwise import ComparisonConfig
from rankwise.records import Trial
from rankwise.train.cost import StepCost
from tests.data import sentences
from tests.models import save_model

SECONDS = 0.01  # of a step, at every rank, where costs are given


def tiny_comparison(model: Path, **options: Any) -> ComparisonConfig:
    """Two ranks, two learning rates and two seeds of a BERT, made at `model`; so small that it ends in seconds."""
    of_all: dict[str, Any] = {
        "model": str(save_model(model, "bert")),
        "train": sentences(160, seed=1),
        "validation": sentences(40, seed=2),
        "test": sentences(60, seed=3),
        "text": "sentence",
        "ranks": (2, 4),
        "alpha": "rank",
        "learning_rates": (1e-3, 5e-3),
        "seeds": 2,
        "batch_size": 8,
        "max_length": 48,
        "dtype": "float32",
        "device": "cpu",
        "keep_leaked": True,
    }
    return ComparisonConfig(**of_all | options)


class KilledError(Exception):
    pass


@contextmanager
def given_costs() -> Iterator[None]:
    """Within the `with` block a step's seconds and memory are not measured but given; most of a tiny run goes there."""

    def costs(base: object, task: object, trials: Sequence[Trial], *settings: object) -> list[StepCost]:
        return [StepCost(trial.rank, SECONDS, None) for trial in trials]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rankwise.compare.training.measure_costs", costs)
        patched.setattr("rankwise.compare.training._simulated_bytes", lambda prepared: [1_000_000])
        yield


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
