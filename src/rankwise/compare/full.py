"""Full fine-tuning beside the ranks: every learning rate and seed, the best rate on validation, its scores of test.

Each is scored when it ends, since its weights are not kept; only the scores of the chosen rate are read. While it
trains it is checkpointed, so that a run that was killed goes on with it. It takes many times the memory of an adapter:
where there is too little, the ranks have their answer all the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from rankwise.compare.directory import RETAINED, RunDirectory
from rankwise.compare.forgetting import NOTHING_RETAINED, forgotten
from rankwise.compare.journal import Event
from rankwise.compare.scoring import read_stacked
from rankwise.compare.under_way import Run
from rankwise.decide.interval import share_interval
from rankwise.records import FullFineTuning
from rankwise.train.failure import is_out_of_memory
from rankwise.train.full import fine_tune


def fine_tune_in_full(run: Run) -> tuple[FullFineTuning | None, list[str]]:
    """The row of full fine-tuning, and notes on it.

    No row where none was asked for, all diverged, or memory was short: a later start tries that again.
    """
    config = run.prepared.config
    rates = config.full_learning_rates
    if rates is None:
        return None, []
    try:
        done = {rate: [_fine_tuned(run, rate, seed) for seed in config.seed_numbers] for rate in rates}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None, ["full fine-tuning: out of memory, so it has no row; where there is more, --resume adds it"]
    trained = {rate: events for rate, events in done.items() if all(one["status"] == "trained" for one in events)}
    if not trained:
        return None, ["full fine-tuning diverged at every learning rate; add lower --full-learning-rates"]
    best = min(trained, key=lambda rate: fmean(one["validation_nll"] for one in trained[rate]))
    edges = {rates[0]: "lowest", rates[-1]: "highest"} if len(rates) > 1 else {}
    notes = []
    if best in edges:
        notes.append(
            f"full fine-tuning: the best learning rate, {best:g}, is the {edges[best]} that was tried; "
            "one beyond it may be better"
        )
    return _row(run, best, trained[best]), notes


def _fine_tuned(run: Run, rate: float, seed: int) -> Event:
    """One full fine-tuning, which is trained where the journal's last of it is not with these texts."""
    directory, journal, task, settings = run.directory, run.journal, run.prepared.task, run.prepared.settings
    known: dict[str, Any] = {
        "id": f"full-lr{rate!r}-s{seed}",
        "examples": len(task.test),
        "retained": None if task.retained is None else task.retained.fingerprint(),
    }
    path = _path(directory, known["id"])
    checkpoint = path / "checkpoint.safetensors"
    before = [event for event in journal.of("fine-tuned") if event["id"] == known["id"]]
    if before and known.items() <= before[-1].items():
        checkpoint.unlink(missing_ok=True)
        return before[-1]
    started = time.monotonic()

    def told(step: int) -> None:
        run.tell(f"full fine-tuning: learning rate {rate:g}, seed {seed}", step / settings.steps)

    tuned = fine_tune(run.prepared.base, task, rate, seed, settings, told, checkpoint)
    directory.write_curve(path, tuned.train_nll, tuned.evaluations)
    directory.write_scores(path, task.test, tuned.test)
    if task.retained is not None and tuned.retained is not None:
        directory.write_scores(path, task.retained, tuned.retained, RETAINED)
    event = journal.append(
        "fine-tuned",
        **known,
        status=tuned.status,
        validation_nll=tuned.evaluations[-1].nll,
        step_seconds=tuned.seconds,
        peak_bytes=tuned.peak_bytes,
        params=tuned.params,
        seconds=time.monotonic() - started,
    )
    checkpoint.unlink(missing_ok=True)
    return event


def _row(run: Run, rate: float, events: Sequence[Event]) -> FullFineTuning:
    directory, task = run.directory, run.prepared.task
    paths = [_path(directory, event["id"]) for event in events]
    scores = read_stacked(directory, paths)
    accuracy = share_interval(scores.correct.astype(np.float64), groups=task.test.groups)
    forgets = NOTHING_RETAINED
    if task.retained is not None:
        before, after = (read_stacked(directory, of, RETAINED) for of in ([directory.baseline], paths))
        forgets = forgotten(before, after, task.retained.groups)
    peaks = [event["peak_bytes"] for event in events if event["peak_bytes"] is not None]
    return FullFineTuning(
        learning_rate=rate,
        trainable_params=events[0]["params"],
        accuracy=accuracy.mean,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        nll=float(scores.nll.mean(dtype=np.float64)),
        training_time_seconds=median(event["step_seconds"] for event in events) * run.prepared.settings.steps,
        peak_memory_bytes=int(median(peaks)) if peaks else None,
        seeds=len(events),
        **forgets,
    )


def _path(directory: RunDirectory, name: str) -> Path:
    return directory.path / "trials" / name
