"""How time and memory grow with trials, examples, rows and classes: is anything worse than linear?

    python -m benchmarks.load --out benchmarks/results/load.json

Every figure is of a process of its own: processor seconds, which a busy machine does not stretch, and by how much the
peak of resident memory rose, both over what making the input took. The input is synthetic where training is not the
point. `growth` is the exponent between two sizes: 1 is linear, 2 quadratic; constant parts make it less than 1.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.validity.record import write_record
from rankwise.base.load import load_tokenizer
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.directory import RunDirectory
from rankwise.compare.journal import Journal
from rankwise.compare.plan import plan_packs
from rankwise.compare.schedule import Schedule
from rankwise.decide.guards import macro_f1, pseudo_values
from rankwise.decide.verdict import decide
from rankwise.records import Evaluation, Trial, TrialResult
from rankwise.report.page import comparison_page
from rankwise.tasks.classification import load_classification
from rankwise.tasks.files import read_file
from rankwise.tasks.files.table import Shape
from rankwise.tasks.task import Task

Work = Callable[[], object]
_RUNGS = tuple(range(100, 201, 20))


def _rows(place: Path, count: int) -> pd.DataFrame:
    labels = np.where(np.arange(count) % 2, "yes", "no")
    return pd.DataFrame(
        {"text": [f"a short text of which this is number {row}" for row in range(count)], "label": labels}
    )


def csv_rows(place: Path, count: int) -> Work:
    """Reading a CSV file of short texts."""
    _rows(place, count).to_csv(place / "rows.csv", index=False)
    return lambda: read_file(place / "rows.csv", [Shape(("text", "label"))])


def parquet_rows(place: Path, count: int) -> Work:
    """Reading a Parquet file of short texts."""
    _rows(place, count).to_parquet(place / "rows.parquet", index=False)
    return lambda: read_file(place / "rows.parquet", [Shape(("text", "label"))])


def tokenised_rows(place: Path, count: int) -> Work:
    """All that a comparison does with a CSV file of short texts: read, split, look for leaks, tokenise."""
    csv_rows(place, count)

    def work() -> Task:
        return load_classification(
            train=place / "rows.csv",
            validation=None,
            test=None,
            text="text",
            text_pair=None,
            label="label",
            tokenizer=load_tokenizer("embedded"),
            max_length=128,
        )

    return work


def _losses(ranks: int, seeds: int, examples: int) -> np.ndarray:
    """Ranks that are nearly alike, so that each is shown to suffice and the cross-check is made for it."""
    generator = np.random.default_rng(0)
    return generator.gamma(1.0, 0.5, (seeds, examples)) + generator.normal(0, 1e-3, (ranks, seeds, examples))


def test_examples(place: Path, count: int) -> Work:
    """Deciding on four ranks and three seeds, by the number of test examples."""
    losses = _losses(4, 3, count)
    return lambda: decide(losses, losses[0, 0] + 0.3, ranks=(2, 4, 8, 16))


def ranks(place: Path, count: int) -> Work:
    """Deciding on 2,000 examples and three seeds, by the number of ranks."""
    losses = _losses(count, 3, 2000)
    return lambda: decide(losses, losses[0, 0] + 0.3, ranks=range(1, count + 1))


def seeds(place: Path, count: int) -> Work:
    """Deciding on 2,000 examples and four ranks, by the number of seeds."""
    losses = _losses(4, count, 2000)
    return lambda: decide(losses, losses[0, 0] + 0.3, ranks=(2, 4, 8, 16))


def classes(place: Path, count: int) -> Work:
    """Macro-F1 with its first-order parts of 20,000 examples and three seeds, by the number of classes."""
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(count, size=20_000), generator.integers(count, size=(3, 20_000))
    return lambda: pseudo_values(macro_f1, predicted, labels, count)


def _comparison(trials: int) -> ComparisonConfig:
    """Two ranks and two learning rates with so many seeds that there are as many trials."""
    return ComparisonConfig(train="t.csv", ranks=(8, 16), learning_rates=(1e-4, 3e-4), seeds=trials // 4)


def _result(trial: Trial, stop: int) -> TrialResult:
    loss = 0.5 + abs(math.log(trial.learning_rate / 2e-4)) + trial.seed / 1e6
    evaluations = tuple(Evaluation(step, loss, 0.8) for step in _RUNGS if step <= stop)
    return TrialResult(trial, "trained" if stop == _RUNGS[-1] else "dropped", (loss,) * stop, evaluations)


def _journaled(place: Path, trials: int) -> tuple[RunDirectory, Journal, dict[Trial, TrialResult]]:
    """The schedule, the journal and the results of a run whose trials train at once, in packs of four."""
    config, directory = _comparison(trials), RunDirectory(place)
    journal, results = Journal(place / "journal.jsonl"), {}
    schedule = Schedule(config, _RUNGS, math.inf)
    while leg := schedule.next_leg(results):
        packs = plan_packs(leg, 4, first=sum(len(event["packs"]) for event in journal.of("plan")))
        planned = [{"pack": pack.id, "trials": [asdict(trial) for trial in pack.trials]} for pack in packs]
        journal.append("plan", start=leg.start, stop=leg.stop, packs=planned)
        schedule.dropped(results)
        for pack in packs:
            results |= {trial: _result(trial, pack.stop) for trial in pack.trials}
            status = {trial.id: results[trial].status for trial in pack.trials}
            journal.append("trained", pack=pack.id, status=status, sha256={}, seconds=1.0)
        schedule.running(results)
    return directory, journal, schedule.settled(results)


def scheduled_trials(place: Path, count: int) -> Work:
    """Planning and journaling all legs of a run, by the number of trials."""
    return lambda: _journaled(place, count)


def read_trials(place: Path, count: int) -> Work:
    """Going on with a run: its journal and learning curves read again, by the number of trials."""
    directory, journal, _ = _journaled(place, count)
    statuses = {trial for event in journal.of("trained") for trial in event["status"]}
    for event in journal.of("plan"):
        for trial in (Trial(**trial) for pack in event["packs"] for trial in pack["trials"]):
            if trial.id in statuses:
                directory.write_result(_result(trial, event["stop"]))
    return lambda: directory.results(Journal(journal.path))


def shown_trials(place: Path, count: int) -> Work:
    """The page of a run, by the number of trials."""
    from tests.report.samples import COMPARISON, experiment

    comparison = replace(COMPARISON, experiments=(experiment(8, 0.8), experiment(16, 0.9)))
    trials = list(_journaled(place, count)[2].values())
    return lambda: comparison_page(comparison, trials, {}, base_bytes=10**9, command="rankwise compare")


SIZES: dict[Callable[[Path, int], Work], tuple[int, ...]] = {
    csv_rows: (10_000, 100_000, 1_000_000),
    parquet_rows: (10_000, 100_000, 1_000_000),
    tokenised_rows: (10_000, 100_000, 1_000_000),
    test_examples: (1_000, 10_000, 100_000),
    ranks: (5, 15, 50),
    seeds: (5, 50, 500),
    classes: (10, 100, 1_000),
    scheduled_trials: (52, 160, 500),
    read_trials: (52, 160, 500),
    shown_trials: (52, 160, 500),
}


def _resident(name: str) -> int:
    """VmRSS, or its peak VmHWM, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measured(case: Callable[[Path, int], Work], smallest: int, size: int) -> dict[str, Any]:
    """What one size takes, in this process."""
    with tempfile.TemporaryDirectory() as place:
        case(Path(place), smallest)()  # what is imported on the way is not counted
    with tempfile.TemporaryDirectory() as place:
        work = case(Path(place), size)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, started = _resident("VmRSS"), time.process_time()
        kept = work()
        seconds = time.process_time() - started
        peak, held = _resident("VmHWM") - before, _resident("VmRSS") - before
        del kept
    return {
        "size": size,
        "cpu_seconds": round(seconds, 3),
        "peak_mb": round(peak / 1e6, 1),
        "held_mb": round(held / 1e6, 1),
    }


def growth(found: list[dict[str, Any]], of: str) -> float | None:
    """The exponent between the last two sizes; None for what is too small to tell."""
    one, two = found[-2:]
    if min(one[of], two[of]) <= 0:
        return None
    return round(math.log(two[of] / one[of]) / math.log(two["size"] / one["size"]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args()
    findings = {}
    for case, sizes in SIZES.items():
        # A new process for each, forked when everything is imported.
        with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
            found = [pool.apply(measured, (case, sizes[0], size)) for size in sizes]
        growths = {"time_growth": growth(found, "cpu_seconds"), "memory_growth": growth(found, "peak_mb")}
        findings[case.__name__] = {"what": case.__doc__, "sizes": found, **growths}
        print(case.__name__, findings[case.__name__], flush=True)
    write_record(options.out, "benchmarks.load", {}, findings)


if __name__ == "__main__":
    main()
