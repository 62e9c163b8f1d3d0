"""Scores on the test split: rank 0's and those of the chosen trials. Of ranks nothing else touches it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from rankwise.compare.directory import RETAINED, SCORES, RunDirectory
from rankwise.compare.journal import Journal
from rankwise.compare.plan import divide
from rankwise.compare.training import read_trained, trials_at_once
from rankwise.compare.under_way import Run
from rankwise.lora.attach import attached
from rankwise.records import Scores, Trial
from rankwise.tasks.task import Split
from rankwise.train.baseline import fit_baseline
from rankwise.train.loop import score


def score_baseline(run: Run) -> Scores:
    """Rank 0's scores, of one seed: what fit a head needs has a best solution, so chance has next to no part in it."""
    prepared, directory, journal = run.prepared, run.directory, run.journal
    test, retained = prepared.task.test, prepared.task.retained
    if not any(event["examples"] == len(test) for event in journal.of("baseline")[-1:]):
        what = "scoring the base model" if prepared.base.causal else "fitting a head on the frozen base"
        run.tell(f"rank 0: {what}")
        started = time.monotonic()
        scores = fit_baseline(prepared.base, prepared.task, prepared.config.first_seed)
        directory.write_scores(directory.baseline, test, scores.test)
        seconds = time.monotonic() - started
        journal.append("baseline", examples=len(test), validation=asdict(scores.validation), seconds=seconds)
    if retained is not None and "baseline" not in _done(journal, "retained", retained):
        run.tell("rank 0: scoring the retained texts")
        directory.write_scores(directory.baseline, retained, score(prepared.base, 1, prepared.task, retained), RETAINED)
        journal.append("retained", trials=["baseline"], sha256=retained.fingerprint())
    return read_stacked(directory, [directory.baseline])


def score_trials(run: Run, trials: Sequence[Trial]) -> None:
    """Score the chosen trials on test, in packs of one seed; nothing that was not chosen touches the test split.

    The retained texts, where there are any, are scored likewise.
    """
    prepared, directory, journal = run.prepared, run.directory, run.journal
    test, retained = prepared.task.test, prepared.task.retained
    # Of one seed, so that a run which is extended by others need not score its trials again.
    of_seeds = ([trial for trial in trials if trial.seed == seed] for seed in sorted({trial.seed for trial in trials}))
    size = trials_at_once(prepared, journal)
    for members in (members for of_seed in of_seeds for members in divide(of_seed, size)):
        untested = [trial for trial in members if trial.id not in _done(journal, "scored", test)]
        unread = [
            trial for trial in members if retained is not None and trial.id not in _done(journal, "retained", retained)
        ]
        if not untested and not unread:
            continue
        # All of the pack's trials, so that the last bits do not depend on where an earlier start ended.
        run.tell(f"scoring seed {members[0].seed} on {len(test):,} test examples")
        started = time.monotonic()
        with attached(prepared.base, members, prepared.targets) as pack:
            for index, trial in enumerate(pack.trials):
                pack.load(index, read_trained(run, trial))
            for split, missing, name in ((test, untested, SCORES), (retained, unread, RETAINED)):
                if split is None or not missing:
                    continue
                scores = score(pack.base, len(pack.trials), prepared.task, split)
                for index, trial in enumerate(pack.trials):
                    if trial in missing:
                        directory.write_scores(directory.trial(trial), split, _of_trial(scores, index), name)
        if untested:
            ids, seconds = [trial.id for trial in untested], time.monotonic() - started
            journal.append("scored", trials=ids, examples=len(test), seconds=seconds)
        if retained is not None and unread:
            journal.append("retained", trials=[trial.id for trial in unread], sha256=retained.fingerprint())


def _done(journal: Journal, event: Literal["scored", "retained"], split: Split) -> set[str]:
    """The trials that were last scored on all of these examples; more examples, or other texts, are scored anew."""
    field, known = ("examples", len(split)) if event == "scored" else ("sha256", split.fingerprint())
    last = {trial: one[field] for one in journal.of(event) for trial in one["trials"]}
    return {trial for trial, scored in last.items() if scored == known}


def read_stacked(directory: RunDirectory, paths: Sequence[Path], name: str = SCORES) -> Scores:
    """The scores in these directories, of test or with the name `RETAINED` of the retained texts."""
    tables = [directory.read_scores(path, name) for path in paths]

    def stacked(column: str) -> np.ndarray:
        return np.stack([table[column].to_numpy() for table in tables])

    return Scores(stacked("nll"), stacked("correct"), stacked("predicted") if "predicted" in tables[0] else None)


def _of_trial(scores: Scores, index: int) -> Scores:
    one = slice(index, index + 1)
    return Scores(scores.nll[one], scores.correct[one], None if scores.predicted is None else scores.predicted[one])
