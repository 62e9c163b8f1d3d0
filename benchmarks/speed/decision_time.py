"""How long it takes to decide on a rank: this project, a grid with transformers' Trainer, and Optuna around it.

python -m benchmarks.speed.decision_time --work /tmp/decision --out benchmarks/results/decision_time.json

The demo's comparison on docmatch, with other learning rates. Each contestant has a process of its own. Counted are
loading the base model, training and scoring; reading and tokenising the data is left out for all but this project.
Results are kept in --work: of this project when it is done, of the others after each training. Optuna's part needs
Optuna (pip install -c constraints.txt optuna).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.speed.grid import grid_findings, train_grid
from benchmarks.speed.measure import alone
from benchmarks.speed.user import Habit
from benchmarks.validity.record import write_record
from rankwise.cli.demo import DEMOS, DemoTask
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.run import run_rank_comparison
from rankwise.durable import write_file

CONTESTANTS = ("rankwise", "rankwise, ladder", "Trainer", "Optuna")


def rankwise(config: ComparisonConfig, work: Path) -> dict[str, object]:
    """Short enough to begin anew where it was cut off, so that its time is that of one start, data and all."""
    kept, run = work / f"rankwise-{config.strategy}.json", work / f"rankwise-{config.strategy}"
    if kept.exists():
        found: dict[str, object] = json.loads(kept.read_text())
        return found
    shutil.rmtree(run, ignore_errors=True)
    started = time.perf_counter()
    comparison = run_rank_comparison(config, run=run)
    seconds = time.perf_counter() - started
    answer = comparison.recommendation
    found = {
        "seconds": round(seconds, 1),
        "status": answer.status,
        "rank": answer.rank,
        "growing": answer.growing,
        "verdicts": {row.rank: row.verdict for row in comparison.experiments},
        "learning rates": {row.rank: row.learning_rate for row in comparison.experiments},
        "accuracy": {row.rank: round(row.accuracy, 4) for row in comparison.experiments},
    }
    write_file(kept, lambda path: path.write_text(json.dumps(found)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--work", type=Path, required=True, help="where results are kept; what is there is not redone")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--habit", choices=("as is", "tuned"), default="as is", help="of who uses the Trainer")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16, 32], help="default: %(default)s")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3], help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--evaluations", type=int, default=2, help="of validation; default: %(default)s")
    parser.add_argument("--length", type=int, default=32, help="tokens of a text at most; default: %(default)s")
    parser.add_argument("--examples", type=int, help="at most so many of each split, to try it; default: all")
    parser.add_argument("--repeats", type=int, default=3, help="Optuna's studies; default: %(default)s")
    parser.add_argument("--trainings", type=int, help="of a study; default: as many as the grid has")
    options = parser.parse_args()
    config = replace(
        DEMOS[DemoTask.CLASSIFICATION],
        ranks=tuple(options.ranks),
        learning_rates=tuple(options.rates),
        seeds=options.seeds,
        steps=options.steps,
        evaluations=options.evaluations,
        max_length=options.length,
        max_train_examples=options.examples,
        max_validation_examples=options.examples,
        max_test_examples=options.examples,
        device="cpu",
    )
    trainings = options.trainings or len(config.ranks) * len(config.learning_rates) * config.seeds
    habit: Habit = options.habit
    # What was tried small must not be taken for results of the whole.
    settings = {"config": config.to_dict(), "habit": habit, "trainings of a study": trainings}
    _check_work(options.work, settings)
    findings: dict[str, object] = {}
    if "rankwise" in options.only:
        findings["rankwise"] = alone(rankwise, config, options.work)
    if "rankwise, ladder" in options.only:
        findings["rankwise, ladder"] = alone(rankwise, replace(config, strategy="ladder"), options.work)
    if "Trainer" in options.only:
        grid = options.work / "grid"
        alone(train_grid, config, habit, grid)
        findings["Trainer"] = alone(grid_findings, config, habit, grid)
    if "Optuna" in options.only:
        from benchmarks.speed.halving import search

        studies = [
            alone(search, config, habit, options.work / "optuna", repeat, trainings)
            for repeat in range(options.repeats)
        ]
        findings["Optuna"] = studies
    write_record(options.out, "benchmarks.speed.decision_time", settings, findings)


def _check_work(work: Path, settings: dict[str, object]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    file, text = work / "settings.json", json.dumps(settings, sort_keys=True)
    if file.exists() and file.read_text() != text:
        raise SystemExit(f"{work} belongs to other settings: give another --work")
    write_file(file, lambda path: path.write_text(text))


if __name__ == "__main__":
    main()
