"""The tasks that cheap methods are scored on: embedded, real where the data lie beside, and with a planted rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.validity.plants import LENGTH, Sizes, frozen_transformer, planted_task, save_transformer
from rankwise import ComparisonConfig
from rankwise.tasks.task import Split

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
RANKS = (1, 2, 4, 8, 16, 32)
_PLANTED_STEPS, _PLANTED_BATCH = 300, 64
_CHARACTERS = 400  # of a plain text, an example

# One alpha for all ranks gives them about the same best learning rate. Margins are 5 % of the largest rank's gain, but
# for docmatch, where within so few steps seeds agree on no less than a few points of accuracy.
_COMMON: dict[str, Any] = {"ranks": RANKS, "alpha": 16.0, "seeds": 3, "batch_size": 16, "device": "cpu"}
_ENCODER: dict[str, Any] = _COMMON | {
    "learning_rates": (5e-4, 1e-3),
    "steps": 120,
    "max_validation_examples": 500,
    "max_test_examples": 2000,
}


def tasks(work: Path) -> Iterator[tuple[str, ComparisonConfig]]:
    """The name and the full grid of every task; models and data that are made go to `work`."""
    for rank in (2, 4, 8, 16):
        yield f"planted rank {rank}", _planted(rank, work)
    if DATA.is_dir():
        yield from _real_tasks()
    yield "docmatch", ComparisonConfig(task="docmatch", max_length=32, metric="accuracy", margin=0.03, **_ENCODER)


def _real_tasks() -> Iterator[tuple[str, ComparisonConfig]]:
    for name, max_length in (("trec", 24), ("sst2", 32)):
        files = {split: DATA / name / f"{split}.csv" for split in ("train", "validation", "test")}
        given = {split: str(file) for split, file in files.items() if file.is_file()}
        yield name, ComparisonConfig(max_length=max_length, **given, **_ENCODER)
    play = (DATA / "instruction" / "retain_shakespeare.txt").read_text()
    texts = [play[start : start + _CHARACTERS] for start in range(0, len(play), _CHARACTERS)]
    yield (
        "shakespeare",
        ComparisonConfig(
            model=str(DATA / "models" / "stories260k"),
            task="instruction",
            train=pd.DataFrame({"text": texts}),
            learning_rates=(3e-3, 1e-2),
            steps=200,
            max_length=128,
            max_validation_examples=300,
            max_test_examples=300,
            **_COMMON,
        ),
    )


def _planted(rank: int, work: Path) -> ComparisonConfig:
    model = work / f"planted-{rank}"
    save_transformer(model, seed=rank)
    sizes = Sizes(_PLANTED_STEPS * _PLANTED_BATCH, validation=500, test=2000)
    task = planted_task(frozen_transformer(rank), rank, sizes, seed=rank)
    return ComparisonConfig(
        model=str(model),
        train=_frame(task.train),
        validation=_frame(task.validation),
        test=_frame(task.test),
        keep_leaked=True,
        target_modules=("value", "pooler.dense"),
        dtype="float32",
        max_length=LENGTH,
        **_COMMON | {"learning_rates": (0.01, 0.03), "steps": _PLANTED_STEPS, "batch_size": _PLANTED_BATCH},
    )


def _frame(split: Split) -> pd.DataFrame:
    texts = [" ".join(f"t{token}" for token in split.input_ids[row]) for row in range(len(split))]
    return pd.DataFrame({"text": texts, "label": split.labels})
