"""How far can the cheap ways to a rank be trusted? Each is scored against the full grid on the same task.

The truth is what the grid says: the smallest rank that is shown to suffice, or, where smaller ones are unresolved, any
of them too. Three ways are scored: the ladder's answer; the cut alone, that is the smallest rank to which one trained
adapter of the largest can be cut without losing more than the margin, once a seed; and the probe, once a seed. Regret
is what following loses on test to the grid's answer, in the metric that decides, by the grid's own trials (the ladder's
by its own, which may have another learning rate), with 95 % limits over seeds and examples. Costs are of this run, on
one machine, one after another, without loading.

    python -m benchmarks.fidelity --out benchmarks/results/fidelity.json --work /tmp/fidelity

Runs are kept in `--work`, and one that was stopped goes on. `python -m benchmarks.fidelity.page` writes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.fidelity.tasks import RANKS, tasks
from benchmarks.validity.record import write_record
from rankwise import ComparisonConfig, RankComparison, probe_ranks, run_rank_comparison
from rankwise.compare.backends import Local
from rankwise.compare.cut import cut_losses
from rankwise.compare.directory import RunDirectory
from rankwise.compare.evidence import Evidence, Scale
from rankwise.compare.journal import Journal, validation_baseline
from rankwise.compare.ladder import knee
from rankwise.compare.observer import ignore
from rankwise.compare.prepare import Prepared, prepare
from rankwise.compare.scoring import read_stacked
from rankwise.compare.under_way import Run
from rankwise.decide.interval import crossed_interval
from rankwise.decide.verdict import Margin
from rankwise.records import Trial


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept; what is there is not redone")
    parser.add_argument("--tasks", help="names, with commas between them; all by default")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, config in tasks(arguments.work):
        if arguments.tasks is None or name in arguments.tasks.split(","):
            found[name] = score(name, config, arguments.work)
    settings = {"ranks": RANKS, "threads": torch.get_num_threads()}
    write_record(arguments.out, __spec__.parent or "", settings, {"tasks": found, "summary": summary(found.values())})


def score(name: str, config: ComparisonConfig, work: Path) -> dict[str, Any]:
    """One task: the grid's answer, and how each cheap way does beside it."""
    prepared = prepare(config, lambda text, share=None: None)
    grid = _compared(config, work / name / "grid")
    truth = Truth(config, grid, prepared.task.test.groups)
    ladder = _compared(replace(config, strategy="ladder"), work / name / "ladder")
    grid_steps, ladder_steps = (_trial_steps(RunDirectory(one.run)) for one in (grid, ladder))
    journal = Journal(ladder.run / "journal.jsonl")
    until_cut = [str(event["event"]) for event in journal.events].index("cut")
    cut_seconds = sum(float(event.get("seconds", 0)) for event in journal.events[: until_cut + 1])
    probes = [
        _probed(replace(config, first_seed=seed), work / name / f"probe-{seed}.json") for seed in config.seed_numbers
    ]
    return {
        "grid": {
            "status": grid.recommendation.status,
            "rank": grid.recommendation.rank,
            "possible": truth.possible,
            "gain": grid.baseline.nll - grid.experiments[-1].nll,
            "margin": grid.recommendation.margin,
            "nll": {row.rank: row.nll for row in grid.experiments},
            "verdicts": {row.rank: row.verdict for row in grid.experiments},
            "seconds": grid.wall_seconds,
            "trial_steps": grid_steps,
        },
        "ladder": {
            "trained": [row.rank for row in ladder.experiments],
            "path": next(note for note in ladder.notes if note.startswith("ladder: ")),
            "status": ladder.recommendation.status,
            "named": [truth.judged(ladder.recommendation.rank, ladder)],
            "share_of_seconds": ladder.wall_seconds / grid.wall_seconds,
            "share_of_trial_steps": ladder_steps / grid_steps,
        },
        "cut": {
            "named": [truth.judged(rank) for rank in _cut_ranks(prepared, ladder, journal)],
            "share_of_seconds": cut_seconds / len(config.seed_numbers) / grid.wall_seconds,
        },
        "probe": {
            "named": [truth.judged(probe["rank"]) for probe in probes],
            "capacity_floor": probes[0]["capacity_floor"],
            "share_of_seconds": median(probe["seconds"] for probe in probes) / grid.wall_seconds,
        },
    }


def _compared(config: ComparisonConfig, run: Path) -> RankComparison:
    print(f"{run}: {config.strategy}", file=sys.stderr, flush=True)
    return run_rank_comparison(config, run=run, resume=run.exists())


def _probed(config: ComparisonConfig, kept: Path) -> dict[str, Any]:
    if not kept.exists():
        print(f"{kept}: probe", file=sys.stderr, flush=True)
        kept.write_text(json.dumps(probe_ranks(config).to_dict()))
    probe: dict[str, Any] = json.loads(kept.read_text())
    return probe


@dataclass(frozen=True)
class Truth:
    """What a grid found; `groups` are the test examples' clusters."""

    config: ComparisonConfig
    grid: RankComparison
    groups: np.ndarray | None

    @property
    def possible(self) -> list[int]:
        """The ranks that the answer may be: from the first that is not shown to underfit to the smallest sufficient."""
        sufficient = self.grid.recommendation.rank or max(RANKS)
        return [r.rank for r in self.grid.experiments if r.verdict != "underfits" and r.rank <= sufficient]

    def judged(self, named: int | None, by: RankComparison | None = None) -> dict[str, Any]:
        """A named rank against the grid: how many ranks off it is, and what following it loses on test.

        By the trials of the comparison that named it, else by the grid's own.
        """
        if named is None:
            return {"rank": None, "off": None, "regret": None}
        nearest = min(RANKS, key=lambda rank: abs(np.log2(rank / named)))
        place = RANKS.index(nearest)
        low, high = RANKS.index(self.possible[0]), RANKS.index(self.possible[-1])
        off = min(place - low, 0) or max(place - high, 0)
        lost = self._losses(by or self.grid, nearest) - self._losses(
            self.grid, self.grid.recommendation.rank or max(RANKS)
        )
        regret = crossed_interval(lost, groups=self.groups)
        return {"rank": named, "off": off, "regret": [regret.mean, regret.low, regret.high]}

    def _losses(self, comparison: RankComparison, rank: int) -> np.ndarray:
        directory = RunDirectory(comparison.run)
        (row,) = [row for row in comparison.experiments if row.rank == rank]
        trials = [self.config.trial(rank, row.learning_rate, seed) for seed in self.config.seed_numbers]
        scores = read_stacked(directory, [directory.trial(trial) for trial in trials])
        return scores.nll if self.config.metric == "nll" else 1 - scores.correct


def _cut_ranks(prepared: Prepared, ladder: RankComparison, journal: Journal) -> list[int]:
    """The knee by each seed's trial of the largest rank alone."""
    config, directory = prepared.config, RunDirectory(ladder.run)
    *smaller, largest = config.ranks
    rate = ladder.experiments[-1].learning_rate
    results = directory.results(journal)
    scale = Scale(config.metric, Margin(config.keep, config.margin), validation_baseline(journal), chance=0.0)
    ranks = []
    run = Run(prepared, directory, journal, Local(prepared), ignore)
    for seed in config.seed_numbers:
        trial: Trial = config.trial(largest, rate, seed)
        best = Evidence.of([results[trial]], config.metric)
        losses = cut_losses(run, [trial], smaller)
        lost = {rank: loss - best.losses[0] for rank, loss in losses.items()}
        ranks.append(knee(config.ranks, lost, scale.delta(best)))
    return ranks


def _trial_steps(directory: RunDirectory) -> int:
    results = directory.results(Journal(directory.path / "journal.jsonl"))
    return sum(len(result.train_nll) for result in results.values())


def summary(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Over all tasks: how often each way names a rank that the grid allows, or its neighbour; costs; the worst regret.

    `regret` is the largest mean in margins: above 1, following it loses more than the user calls nothing.
    """
    found = list(found)
    return {way: _summary_of(way, found) for way in ("ladder", "cut", "probe")}


def _summary_of(way: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    named = [(one, task["grid"]["margin"]) for task in found for one in task[way]["named"]]
    off = [one["off"] for one, _ in named]
    regrets = [one["regret"][0] / margin for one, margin in named if margin and one["regret"]]
    return {
        "tasks": len(found),
        "named": len(named),
        "same": sum(places == 0 for places in off),
        "neighbour": sum(places in (-1, 1) for places in off),
        "too_small": sum(places is not None and places < 0 for places in off),
        "too_large": sum(places is not None and places > 0 for places in off),
        "median_share_of_seconds": median(task[way]["share_of_seconds"] for task in found),
        "worst_regret_in_margins": max(regrets, default=None),
    }


if __name__ == "__main__":
    main()
