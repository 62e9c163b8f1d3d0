"""Runs that are stopped at random instants, again and again: do they end with an undisturbed run's numbers?

    python -m benchmarks.faults --out benchmarks/results/faults.json --work /tmp/faults

A tiny comparison is run once undisturbed. Then it is run many times more, each time stopped at instants that a seeded
generator draws, gone on with by `resume`, and compared: every number, every adapter and every table, bit for bit.
SIGKILL leaves a process no moment to tidy up; SIGTERM, as schedulers send it, ends one that does not listen as surely;
SIGINT is ctrl-C, and a second one comes while the first is dealt with; on a full disk (from that instant no file takes
a byte, by Linux' limit of file sizes) it ends by itself.
Rows are those of the table, and the trials of the journal: none may be missing, none be there twice.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.validity.record import write_record
from rankwise import ComparisonConfig, RunError, UserError, run_rank_comparison
from tests.compare.runs import journal, numbers, tiny_comparison

_STOPPED = 3  # exit code of a process that ended itself
_MOST_KILLS = 6  # of one run, which then ends by itself
_KINDS = {"SIGKILL": 4, "SIGTERM": 1, "SIGINT": 1, "SIGINT twice": 1, "full disk": 3}  # and how often each is drawn


def run_once(config: ComparisonConfig, run: Path) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
    try:
        run_rank_comparison(config, run=run, resume=(run / "comparison.json").exists())
    except (KeyboardInterrupt, RunError, UserError):
        sys.exit(_STOPPED)


def stopped(config: ComparisonConfig, run: Path, seconds: float, how: str) -> bool:
    """Start or go on with a run, and stop it after so many seconds; whether it was still at work."""
    # A forked process has everything imported, so that instants fall on the run and not on its imports.
    process = multiprocessing.get_context("fork").Process(target=run_once, args=(config, run))
    process.start()
    process.join(seconds)
    at_work = process.is_alive()
    if at_work:
        assert process.pid is not None
        if how == "full disk":
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
        else:
            name, *twice = how.split()
            for _ in (name, *twice):
                os.kill(process.pid, signal.Signals[name])
    process.join()
    # A second interrupt may come while the first is on its way out, and then Python says 1.
    ended = {0, _STOPPED, -signal.SIGKILL, -signal.SIGTERM} | ({1} if how == "SIGINT twice" else set())
    if process.exitcode not in (ended if at_work else {0}):
        raise RuntimeError(f"{run} did not go on: exit code {process.exitcode}")
    return at_work


def rows(run: Path) -> Counter[str]:
    """The rows of the table, and the trials that the journal says were trained to each step."""
    found = Counter(f"row of rank {row['rank']}" for row in numbers(run)["experiments"])
    stops = {pack["pack"]: plan["stop"] for plan in journal(run, "plan") for pack in plan["packs"]}
    trained = [(event["pack"], trial) for event in journal(run, "trained") for trial in event["status"]]
    return found + Counter(f"{trial} to step {stops[pack]}" for pack, trial in trained)


def disturbed(config: ComparisonConfig, whole: Path, work: Path, draw: random.Random, longest: float) -> dict[str, Any]:
    """One run and how it was stopped, and what it ended with beside the undisturbed one."""
    shutil.rmtree(work, ignore_errors=True)
    kills: Counter[str] = Counter()
    for _ in range(_MOST_KILLS):
        (how,) = draw.choices(list(_KINDS), list(_KINDS.values()))
        if not stopped(config, work, draw.uniform(0, longest), how):
            break
        kills[how] += 1
    stopped(config, work, 600, "SIGKILL")
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
    # A pack's size depends on what is free, which differs from start to start.
    grid = tiny_comparison(options.work / "model", steps=40, evaluations=4, pack_size=4)
    draw, found = random.Random(0), []
    for config in (grid, replace(grid, strategy="ladder")):
        strategy, whole = config.strategy, options.work / config.strategy
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
