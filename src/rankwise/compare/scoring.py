"""Scores on the test split: rank 0's and those of the chosen trials. Nothing else touches it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rankwise.compare.directory import RunDirectory
from rankwise.compare.journal import Journal
from rankwise.compare.plan import divide
from rankwise.compare.prepare import Prepared
from rankwise.lora.attach import attached
from rankwise.lora.peft_io import read_adapter
from rankwise.records import Baseline, Scores, Trial
from rankwise.train.baseline import fit_baseline
from rankwise.train.loop import score


def score_baseline(
    prepared: Prepared, directory: RunDirectory, journal: Journal, tell: Callable[[str], None]
) -> Scores:
    """Rank 0's scores, of one seed: what fit a head needs has a best solution, so chance has next to no part in it."""
    test = prepared.task.test
    if any(event["examples"] == len(test) for event in journal.of("baseline")):
        return _read(directory, [directory.baseline])
    what = "scoring the base model" if prepared.base.causal else "fitting a head on the frozen base"
    tell(f"rank 0: {what}")
    started = time.monotonic()
    scores = fit_baseline(prepared.base, prepared.task, prepared.config.first_seed)
    directory.write_scores(directory.baseline, test, scores.test)
    seconds = time.monotonic() - started
    journal.append("baseline", examples=len(test), validation=asdict(scores.validation), seconds=seconds)
    return scores.test


def validation_baseline(journal: Journal) -> Baseline:
    """Rank 0 on validation, of which the fit on the test split's behalf kept a record."""
    return Baseline(**journal.of("baseline")[-1]["validation"])


def score_trials(
    prepared: Prepared,
    directory: RunDirectory,
    journal: Journal,
    trials: Sequence[Trial],
    tell: Callable[[str], None],
) -> None:
    """Score the chosen trials on test, in packs of one seed; nothing that was not chosen touches the test split."""
    test = prepared.task.test
    scored = {trial for event in journal.of("scored") if event["examples"] == len(test) for trial in event["trials"]}
    for members in divide(trials, prepared.most_trials):
        missing = [trial for trial in members if trial.id not in scored]
        if not missing:
            continue
        # All of the pack's trials, so that the last bits do not depend on where an earlier start ended.
        tell(f"scoring seed {members[0].seed} on {len(test):,} test examples")
        started = time.monotonic()
        with attached(prepared.base, members, prepared.targets) as pack:
            for index, trial in enumerate(pack.trials):
                adapter = read_adapter(directory.trial(trial) / "adapter", prepared.base, prepared.targets)
                pack.load(index, adapter.state)
            scores = score(pack.base, len(pack.trials), prepared.task, test)
        for index, trial in enumerate(pack.trials):
            if trial in missing:
                directory.write_scores(directory.trial(trial), test, _of_trial(scores, index))
        ids = [trial.id for trial in missing]
        journal.append("scored", trials=ids, examples=len(test), seconds=time.monotonic() - started)


def read_scores(directory: RunDirectory, trials: Sequence[Trial]) -> Scores:
    """The scores of trials that were scored, stacked in their order."""
    return _read(directory, [directory.trial(trial) for trial in trials])


def _read(directory: RunDirectory, paths: Sequence[Path]) -> Scores:
    tables = [directory.read_scores(path) for path in paths]

    def stacked(column: str) -> np.ndarray:
        return np.stack([table[column].to_numpy() for table in tables])

    return Scores(stacked("nll"), stacked("correct"), stacked("predicted") if "predicted" in tables[0] else None)


def _of_trial(scores: Scores, index: int) -> Scores:
    one = slice(index, index + 1)
    return Scores(scores.nll[one], scores.correct[one], None if scores.predicted is None else scores.predicted[one])
