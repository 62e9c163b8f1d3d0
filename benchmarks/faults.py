"""Runs that are killed at random instants, again and again: do they end with an undisturbed run's numbers?

    python -m benchmarks.faults --out benchmarks/results/faults.json --work /tmp/faults

A tiny comparison is run once undisturbed. Then it is run many times more, each time killed at instants that a seeded
generator draws, gone on with by `resume`, and compared: every number, every adapter and every table, bit for bit.
SIGKILL leaves a process no moment to tidy up; SIGTERM, as schedulers send it, ends one that does not listen as surely.
Rows are those of the table, and the trials of the journal: none may be missing, none be there twice.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.validity.record import write_record
from rankwise import ComparisonConfig, run_rank_comparison
from tests.compare.runs import journal, numbers
from tests.data import sentences
from tests.models import save_model

_MOST_KILLS = 6  # of one run, which then ends by itself


def comparison(model: Path, strategy: str) -> ComparisonConfig:
    config = ComparisonConfig(
        model=str(model),
        train=sentences(160, seed=1),
        validation=sentences(40, seed=2),
        test=sentences(60, seed=3),
        text="sentence",
        ranks=(2, 4),
        learning_rates=(1e-3, 5e-3),
        seeds=2,
        steps=40,
        batch_size=8,
        max_length=48,
        evaluations=4,
        dtype="float32",
        device="cpu",
        keep_leaked=True,
        pack_size=4,  # what is free differs from start to start
    )
    return replace(config, strategy=strategy)


def run_once(config: ComparisonConfig, run: Path) -> None:
    torch.set_num_threads(1)
    run_rank_comparison(config, run=run, resume=(run / "comparison.json").exists())


def killed(config: ComparisonConfig, run: Path, seconds: float, how: signal.Signals) -> bool:
    """Start or go on with a run, and kill it after so many seconds; whether it was still at work."""
    # A forked process has everything imported, so that instants fall on the run and not on its imports.
    process = multiprocessing.get_context("fork").Process(target=run_once, args=(config, run))
    process.start()
    process.join(seconds)
    at_work = process.is_alive()
    if at_work:
        assert process.pid is not None
        process.terminate() if how == signal.SIGTERM else process.kill()
    process.join()
    if not at_work and process.exitcode != 0:
        raise RuntimeError(f"{run} did not go on: exit code {process.exitcode}")
    return at_work


def rows(run: Path) -> Counter[str]:
    """The rows of the table, and the trials that the journal says were trained to each step."""
    found = Counter(f"row of rank {row['rank']}" for row in numbers(run)["experiments"])
    stops = {pack["pack"]: plan["stop"] for plan in journal(run, "plan") for pack in plan["packs"]}
    trained = [(event["pack"], trial) for event in journal(run, "trained") for trial in event["status"]]
    return found + Counter(f"{trial} to step {stops[pack]}" for pack, trial in trained)


def disturbed(config: ComparisonConfig, whole: Path, work: Path, draw: random.Random, longest: float) -> dict[str, Any]:
    """One run with its kills, and what it ended with beside the undisturbed one."""
    shutil.rmtree(work, ignore_errors=True)
    kills: Counter[str] = Counter()
    for _ in range(_MOST_KILLS):
        how = signal.SIGTERM if draw.random() < 0.2 else signal.SIGKILL
        if not killed(config, work, draw.uniform(0, longest), how):
            break
        kills[how.name] += 1
    killed(config, work, 600, signal.SIGKILL)
    mine, expected = rows(work), rows(whole)
    return {
        "kills": dict(kills),
        "the same numbers": numbers(work) == numbers(whole),
        "rows lost": (expected - mine).total(),
        "rows duplicated": (mine - expected).total(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--work", type=Path, required=True, help="an empty place for the runs")
    parser.add_argument("--kills", type=int, default=100, help="of all runs together; default: %(default)s")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    model, draw, found = save_model(options.work / "model", "bert"), random.Random(0), []
    for strategy in ("grid", "ladder"):
        config, whole = comparison(model, strategy), options.work / strategy
        started = time.monotonic()
        run_once(config, whole)
        longest = time.monotonic() - started
        while sum(sum(one["kills"].values()) for one in found) < options.kills / (2 if strategy == "grid" else 1):
            found.append(disturbed(config, whole, options.work / "disturbed", draw, longest))
            print(f"{strategy}, run {len(found)}: {found[-1]}", flush=True)
    kills = sum((Counter(one["kills"]) for one in found), Counter[str]())
    findings = {
        "faults injected": kills.total(),
        "of them": dict(kills),
        "runs": len(found),
        "runs that ended with the same numbers": sum(one["the same numbers"] for one in found),
        "rows lost": sum(one["rows lost"] for one in found),
        "rows duplicated": sum(one["rows duplicated"] for one in found),
    }
    write_record(options.out, "benchmarks.faults", {"kills": options.kills, "seed": 0}, findings)


if __name__ == "__main__":
    main()
