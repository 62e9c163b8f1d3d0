"""The run directory: everything one comparison leaves on disk, and whether it may go on.

comparison.json     the resolved configuration, the model's revision, the data's fingerprints
journal.jsonl       what happened, in order
checkpoints/        the pack in progress, and trials that stand at a rung
trials/ID/          adapter/ (PEFT format), curve.parquet, scores.parquet: example_id, nll, correct, and predicted (the
                    class) or tokens (how many are learned; nll and correct are their means)
                    retained.parquet: the same of the retained texts, where there are any
baseline/           rank 0: scores.parquet, retained.parquet
adapter/            the adapter of the recommended rank's best trial
bases/NAME/         a run of its own over each base after the first
tensorboard/        event files, with --report-to tensorboard
recommendation.json the answer and what it stands on
experiments.json    what `--json` prints
report.html         the page
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from rankwise.compare.differences import Description, differences
from rankwise.compare.journal import Journal
from rankwise.durable import digest, write_directory, write_file
from rankwise.errors import RunError, UserError, reason_of, shortened
from rankwise.records import Evaluation, RankComparison, Scores, Trial, TrialResult, TrialStatus
from rankwise.tasks.files.parquet import check_unpacked

if TYPE_CHECKING:
    from rankwise.tasks.task import Split

SCORES = "scores.parquet"  # of the test examples
RETAINED = "retained.parquet"  # of the retained texts

# What reading a file raises that was damaged, or made by somebody else, where it is JSON or Parquet all the same.
DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

_BEFORE_A_RUN = ("run.lock", ".comparison.partial.json")  # what a kill leaves where it comes before the description


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """What people call the run; one over a further base has the run's name and the base's."""
        path = self.path.absolute()
        return f"{path.parent.parent.name}-{path.name}" if path.parent.name == "bases" else path.name

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def page(self) -> Path:
        return self.path / "report.html"

    def trial(self, trial: Trial) -> Path:
        return self.path / "trials" / trial.id

    def checkpoint(self, name: str) -> Path:
        """The training state of a pack in progress or of a trial at a rung, by its id."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def remove_checkpoints(self, *, keep: Collection[str]) -> None:
        """Remove all training states but those of `keep`, and what a kill left half written."""
        kept = {self.checkpoint(name) for name in keep}
        for file in self.path.glob("checkpoints/*"):
            if file not in kept:
                file.unlink()

    def check_free(self, *, resume: bool) -> None:
        """Raise `UserError` where there is something already, unless it is a run and to be resumed."""
        if resume and not (self.path / "comparison.json").is_file():
            raise UserError(f"{self.path} is not a run directory, so there is nothing to resume; leave out --resume")
        if resume or not self.path.exists():
            return
        if (self.path / "comparison.json").is_file():
            raise UserError(f"run directory {self.path} exists: continue it with --resume, or choose another --run")
        if not self.path.is_dir() or any(entry.name not in _BEFORE_A_RUN for entry in self.path.iterdir()):
            raise UserError(f"{self.path} exists and is not a run directory; choose another --run")

    def check_space(self, needed: int) -> None:
        """Raise `UserError` where the disk cannot hold `needed` bytes."""
        existing = next(parent for parent in [self.path, *self.path.absolute().parents] if parent.exists())
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise UserError(
                f"not enough disk: the run needs {needed / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB free; "
                "free some, or choose another --run"
            )

    @contextmanager
    def opened(self, description: Description, test: Split, *, resume: bool) -> Iterator[Journal]:
        """Create the run, or check that the one that is there may go on; no other process can, until this is left.

        Raises `UserError` for a difference of configuration, model or data that no run may be extended by
        (`rankwise.compare.differences`).
        """
        lock = FileLock(self.path / "run.lock", timeout=0)
        try:
            yield self._journal(lock, description, test, resume=resume)
        finally:
            lock.release()

    def _journal(self, lock: FileLock, description: Description, test: Split, *, resume: bool) -> Journal:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            self.check_free(resume=resume)
            journal = Journal(self.path / "journal.jsonl")
            self._check_whole(journal)
            self._describe(description, test, journal)
        except Timeout:
            raise UserError(
                f"run directory {self.path} is in use by another process; choose another --run, "
                f"or, if no process is at work there, remove its {Path(lock.lock_file).name}"
            ) from None
        except OSError as error:
            raise UserError(
                f"run directory {self.path} cannot be written ({error.strerror or error}); "
                "mend that, or choose another --run"
            ) from error
        return journal

    def _check_whole(self, journal: Journal) -> None:
        """Raise `RunError` where the journal has lost lines: it must have told of all that trained, and of the end."""
        planned = {trial.id for trial in _planned(journal)}
        trained = {path.name for path in self.path.glob("trials/r*")}
        ended = (self.path / "experiments.json").exists()
        if trained - planned or (ended and not journal.of("decided")):
            raise _cut_short(journal)

    def _describe(self, description: Description, test: Split, journal: Journal) -> None:
        """Write what the run is; what made its first numbers (versions, hardware) stays."""
        file = self.path / "comparison.json"
        if file.is_file():
            try:
                there = json.loads(file.read_text(encoding="utf-8"))
                found = differences(there, description, test, _ended(journal))
                kept = {key: there[key] for key in ("versions", "hardware")}
                json.dumps(kept, ensure_ascii=False).encode()
            except DAMAGE as error:
                raise RunError(
                    f"{file} is damaged ({reason_of(error)}); restore it from a copy, or start a new run"
                ) from error
            if found:
                raise UserError(
                    f"run directory {self.path} belongs to another comparison: {'; '.join(found)}; choose another --run"
                )
            description = description | kept
        write_json(file, description)

    def write_result(self, result: TrialResult) -> None:
        self.write_curve(self.trial(result.trial), result.train_nll, result.evaluations)

    def write_curve(self, directory: Path, train_nll: Sequence[float], evaluations: Sequence[Evaluation]) -> None:
        """A learning curve: train_nll at every step, validation scores where they were taken."""
        at = {evaluation.step: evaluation for evaluation in evaluations}
        steps = range(1, len(train_nll) + 1)
        curve = pd.DataFrame(
            {
                "step": steps,
                "train_nll": train_nll,
                "validation_nll": [at[step].nll if step in at else None for step in steps],
                "validation_accuracy": [at[step].accuracy if step in at else None for step in steps],
            }
        )
        _write_parquet(directory / "curve.parquet", curve)

    def read_result(self, trial: Trial, status: TrialStatus) -> TrialResult:
        file = self.trial(trial) / "curve.parquet"
        curve = _read_parquet(file)
        try:
            scored = curve[curve["validation_accuracy"].notna()]
            evaluations = zip(scored["step"], scored["validation_nll"], scored["validation_accuracy"], strict=True)
            return TrialResult(
                trial,
                status,
                tuple(map(float, curve["train_nll"])),
                tuple(Evaluation(int(step), float(nll), float(accuracy)) for step, nll, accuracy in evaluations),
            )
        except DAMAGE as error:
            raise RunError(f"{file} is no learning curve ({reason_of(error)}); restore it from a copy") from error

    def results(self, journal: Journal) -> dict[Trial, TrialResult]:
        """What all starts of the run so far have trained. Raises `RunError` where the journal has lost lines of it."""
        plans, trained = journal.of("plan"), journal.of("trained")
        stops = {pack["pack"]: plan["stop"] for plan in plans for pack in plan["packs"]}
        told = {trial: (event["pack"], status) for event in trained for trial, status in event["status"].items()}
        done = {event["pack"] for event in trained}
        # After a kill, a pack's curves may be there without the line that tells of them.
        under_way = {
            Trial(**trial)
            for plan in plans[-1:]
            for pack in plan["packs"]
            if pack["pack"] not in done
            for trial in pack["trials"]
        }
        found = {trial: self.read_result(trial, told[trial.id][1]) for trial in _ended(journal)}
        for trial, result in found.items():
            if trial not in under_way and len(result.train_nll) > stops.get(told[trial.id][0], 0):
                raise _cut_short(journal)
        return found

    def write_scores(self, directory: Path, split: Split, scores: Scores, name: str = SCORES) -> None:
        """Per-example scores of one trial, or of rank 0."""
        columns = {"example_id": split.example_ids, "nll": scores.nll[0], "correct": scores.correct[0]}
        if scores.predicted is not None:
            columns |= {"correct": scores.correct[0] == 1, "predicted": scores.predicted[0]}
        elif split.learned is not None:
            columns |= {"tokens": np.add.reduceat(split.learned.flat, split.learned.offsets[:-1])}
        _write_parquet(directory / name, pd.DataFrame(columns))

    def read_scores(self, directory: Path, name: str = SCORES) -> pd.DataFrame:
        return _read_parquet(directory / name)

    @property
    def baseline(self) -> Path:
        return self.path / "baseline"

    def publish_adapter(self, trial: Trial) -> None:
        """Copy a trial's adapter to `adapter/`."""
        source = self.trial(trial) / "adapter"
        write_directory(self.adapter, lambda beside: shutil.copytree(source, beside, dirs_exist_ok=True))


def read_comparison(run: Path) -> RankComparison:
    """The comparison that a run ended with, wherever the run lies now.

    Raises `UserError` where it has not ended, `RunError` where its files are damaged.
    """
    file = run / "experiments.json"
    if not file.is_file():
        if (run / "comparison.json").is_file():
            raise UserError(f"run {run} has not ended: go on with it by rankwise compare --run {run} --resume")
        raise UserError(f"{run} is not a run directory: give the directory that rankwise compare was given with --run")
    try:
        comparison = RankComparison.from_dict(json.loads(file.read_text(encoding="utf-8")))
        _check_sense(comparison)
    except (OSError, *DAMAGE) as error:
        raise RunError(
            f"{file} is damaged ({reason_of(error)}); "
            "restore it from a copy, or make it anew by going on with the run with --resume"
        ) from error
    over = tuple(
        replace(one, run=run / "bases" / one.run.name, adapter=run / "bases" / one.run.name / "adapter")
        for one in comparison.over
    )
    return replace(comparison, run=run, adapter=run / "adapter", over=over)


def _check_sense(comparison: RankComparison) -> None:
    """What no comparison says; names of bases become paths, and must not lead out of the run."""
    for one in (comparison, *comparison.over):
        if not one.experiments or any(row.rank < 1 or row.seeds < 1 for row in one.experiments):
            raise ValueError("it has no experiments, or one of no rank or no seed")
        if not all(math.isfinite(row.alpha) and math.isfinite(row.learning_rate) for row in one.experiments):
            raise ValueError("an experiment has no alpha or no learning rate")
    for one in comparison.over:
        if one.over or one.run.name in ("", "..") or "\0" in one.run.name:
            raise ValueError(f"{shortened(str(one.run))} is no run over another base")


def _planned(journal: Journal) -> list[Trial]:
    packs = (pack for plan in journal.of("plan") for pack in plan["packs"])
    return list(dict.fromkeys(Trial(**trial) for pack in packs for trial in pack["trials"]))


def _ended(journal: Journal) -> list[Trial]:
    """The trials that have come to the end of a leg, or diverged."""
    told = {trial for event in journal.of("trained") for trial in event["status"]}
    return [trial for trial in _planned(journal) if trial.id in told]


def _cut_short(journal: Journal) -> RunError:
    return RunError(
        f"{journal.path} is missing or cut short: the run has gone further than it tells; "
        "restore it from a copy, or start a new run"
    )


def write_json(path: Path, value: object) -> None:
    write_file(path, lambda beside: beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8"))


def _write_parquet(path: Path, table: pd.DataFrame) -> None:
    table.attrs["sha256"] = _digest(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, table.to_parquet)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        check_unpacked(path)
        table = pd.read_parquet(path)
        if table.attrs.get("sha256") != _digest(table):
            raise ValueError("its figures are not those that were written")
    # What reads Parquet raises errors of many kinds for bytes that are none.
    except Exception as error:
        raise RunError(
            f"{path} is missing or damaged ({reason_of(error)}); restore it from a copy, or start a new run"
        ) from error
    return table


def _digest(table: pd.DataFrame) -> str:
    """Of all columns as float64, in which every figure of ours is exact; a missing one is NaN, be it of any type."""
    columns = {str(name): pd.to_numeric(table[name]).to_numpy(np.float64, na_value=np.nan) for name in table}
    return digest({name: np.where(np.isnan(values), np.nan, values).data for name, values in columns.items()})
