"""How well do workers share a comparison? Measured with two, simulated for 8 to 512.

    python -m benchmarks.scale --out benchmarks/results/scale.json --work /tmp/scale

A comparison on docmatch is run here, by one process of one thread, and again by a Ray cluster of two workers of one
thread each. Both leave each pack's seconds and each leg's: a leg waits for its last pack, since that decides what the
next one trains. The simulation gets the first run's pack times and the workers' start, and is held against the second
run's legs; then it is asked for clusters that nobody had: a large comparison with packs of as uneven lengths as those
measured, workers that are lost at random (exponential times between losses, a pack goes on from its last checkpoint)
and workers of uneven speed (lognormal).

Two cores that share their caches and memory are slower each than one alone, which the first run's times do not know of;
so the simulation is also given the second run's own. What then is missing is what the backend costs.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.validity.record import write_record

_WORKERS = (8, 32, 128, 512)
_ROUNDS = 20  # simulations of each, of which the median is told
_HOURS = 1.0  # of a pack that trains from the first step to the last
_EVALUATIONS = 4  # of a trial: a checkpoint is sent at each
_RESTART = 0.05  # hours until a lost worker's place is taken, and the base model loaded
# Hours of one worker between losses. Meta counted 419 unexpected interruptions in 54 days of 16,384 GPUs
# (Grattafiori et al. 2024, arXiv 2407.21783, section 3.3.4), which is 50,700; the other is a cheap, revocable machine.
_BETWEEN_LOSSES = {"never": math.inf, "as reported for Llama 3": 50_700.0, "revocable": 10.0}
_SIGMAS = (0.0, 0.3)  # of the lognormal factor of a pack's time
# The large comparison: eight ranks, four learning rates, ten seeds, packs of two.
_TRIALS, _SEEDS, _PACK = 8 * 4, 10, 2


@dataclass(frozen=True)
class Disturbance:
    """What befalls workers: hours between losses of one, hours until it is replaced, the spread of their speed."""

    between_losses: float = math.inf
    restart: float = 0.0
    sigma: float = 0.0


def makespan(
    legs: Sequence[Sequence[float]],
    starts: Sequence[float],
    disturbance: Disturbance = Disturbance(),
    *,
    checkpoints: int = 1,
    seed: int = 0,
) -> float:
    """When the last pack of the last leg is done. Pure.

    `legs` are the packs' times in the order they are given out, `starts` the times from which workers are there, one
    each. A worker that is free takes the next pack; no pack of a leg begins before the leg before it is done. A lost
    pack has kept the last of so many equal parts, `checkpoints`, and is the next to be given out.
    """
    draw = np.random.default_rng(seed)
    free = sorted(starts)
    now = 0.0
    for leg in legs:
        waiting = deque((seconds, seconds / checkpoints) for seconds in leg)
        events: list[tuple[float, int, tuple[float, float] | None]] = []  # when, a number that orders, a lost pack
        free = [max(now, at) for at in free]
        heapq.heapify(free)
        number = left = len(waiting)
        while left:
            # Before anything else happens, whoever is free by then takes what waits.
            while waiting and free and (not events or free[0] <= events[0][0]):
                at = max(now, heapq.heappop(free))
                work, part = waiting.popleft()
                speed = math.exp(draw.normal(0.0, disturbance.sigma)) if disturbance.sigma else 1.0
                fails = (
                    draw.exponential(disturbance.between_losses) if disturbance.between_losses < math.inf else math.inf
                )
                number += 1
                if fails >= work * speed:
                    heapq.heappush(events, (at + work * speed, number, None))
                    continue
                kept = math.floor(fails / speed / part) * part
                heapq.heappush(events, (at + fails, number, (work - kept, part)))
            now, _, lost = heapq.heappop(events)
            if lost is None:
                left -= 1
                heapq.heappush(free, now)
            else:
                waiting.appendleft(lost)
                heapq.heappush(free, now + disturbance.restart)
    return now


def large_comparison(unevenness: Sequence[float], seed: int) -> list[list[float]]:
    """Hours of the packs of each leg: to half of the steps, to three quarters with half of the rates, to the end."""
    draw = np.random.default_rng(seed)
    shares = ((1, 0.5), (2, 0.25), (4, 0.25))
    return [
        [_HOURS * share * float(draw.choice(unevenness)) for _ in range(_SEEDS * _TRIALS // parts // _PACK)]
        for parts, share in shares
    ]


def simulated(unevenness: Sequence[float]) -> list[dict[str, object]]:
    """A row for each size of a cluster, each rate of losses and each spread of speed."""
    rows = []
    for workers in _WORKERS:
        for losses, hours in _BETWEEN_LOSSES.items():
            for sigma in _SIGMAS:
                found = []
                for seed in range(_ROUNDS):
                    legs = large_comparison(unevenness, seed)
                    disturbance = Disturbance(hours, _RESTART, sigma)
                    took = makespan(legs, [0.0] * workers, disturbance, checkpoints=_EVALUATIONS // 2, seed=seed)
                    found.append((took, sum(map(sum, legs)) / took))
                took, speedup = (median(column) for column in zip(*found, strict=True))
                rows.append(
                    {
                        "workers": workers,
                        "losses": losses,
                        "sigma": sigma,
                        "hours": round(took, 3),
                        "speed-up": round(speedup, 1),
                        "busy": round(speedup / workers, 3),
                    }
                )
    return rows


@dataclass
class Watch:
    """When legs began and workers came, in seconds."""

    legs: list[float]
    starts: list[float]

    def take(self, event: object) -> None:
        from rankwise.compare.backends import Workers
        from rankwise.compare.observer import Planned

        if isinstance(event, Planned):
            self.legs.append(time.monotonic())
        # Those that come within the first leg; later ones have been there before.
        elif isinstance(event, Workers) and len(self.legs) == 1 and event.count > len(self.starts):
            self.starts.append(time.monotonic() - self.legs[0])


def measured(work: Path, backend: str, steps: int, seeds: int) -> dict[str, Any]:
    """Each leg's seconds and those of its packs, in the order that they are given out; when workers came."""
    from rankwise import ComparisonConfig, run_rank_comparison

    run, watch = work / backend, Watch([], [])
    shutil.rmtree(run, ignore_errors=True)
    config = ComparisonConfig(
        model="embedded",
        task="docmatch",
        ranks=(4, 8, 16),
        learning_rates=(5e-4, 2e-3),
        seeds=seeds,
        steps=steps,
        max_length=32,
        max_train_examples=1_000,
        max_validation_examples=100,
        max_test_examples=100,
        evaluations=4,
        pack_size=2,
        dtype="float32",
        device="cpu",
    )
    run_rank_comparison(replace(config, backend=backend), run=run, observe=watch.take)
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    took = {event["pack"]: event for event in events if event["event"] == "trained"}
    plans = [[pack["pack"] for pack in event["packs"]] for event in events if event["event"] == "plan"]
    spans = [(event["stop"] - event["start"]) for event in events if event["event"] == "plan"]
    return {
        "packs": [[took[pack]["pack_seconds"] for pack in packs] for packs in plans],
        "legs": [sum(took[pack]["seconds"] for pack in packs) for packs in plans],
        "trial steps": [
            [span * len(took[pack]["status"]) for pack in packs] for span, packs in zip(spans, plans, strict=True)
        ],
        "starts": watch.starts,
    }


def compared(alone: dict[str, Any], two: dict[str, Any]) -> dict[str, object]:
    """The two-worker run's seconds beside those that the simulation says."""
    took = sum(two["legs"])
    told = {
        "from the pack times of one process": makespan(alone["packs"], two["starts"]),
        "from its own pack times": makespan(two["packs"], two["starts"]),
    }
    return {
        "one process, seconds": round(sum(alone["legs"]), 2),
        "two workers, seconds": round(took, 2),
        "until each worker came, seconds": [round(start, 2) for start in two["starts"]],
        "a pack beside another, times as long": round(
            fmean(map(sum, two["packs"])) / fmean(map(sum, alone["packs"])), 3
        ),
        "simulated": {
            name: {"seconds": round(one, 2), "off by": round(one / took - 1, 3)} for name, one in told.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--work", type=Path, required=True, help="where the runs are kept; what is there is made anew")
    parser.add_argument("--steps", type=int, default=80, help="of each trial; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    alone = measured(options.work, "local", options.steps, options.seeds)
    two = measured(options.work, "ray", options.steps, options.seeds)
    a_step = [
        seconds / steps
        for of_leg, steps_of_leg in zip(alone["packs"], alone["trial steps"], strict=True)
        for seconds, steps in zip(of_leg, steps_of_leg, strict=True)
    ]
    unevenness = [one / fmean(a_step) for one in a_step]
    findings = {
        "measured": compared(alone, two),
        "packs": {"one process": _rounded(alone), "two workers": _rounded(two)},
        "simulated": simulated(unevenness),
    }
    settings = {"steps": options.steps, "seeds": options.seeds, "rounds": _ROUNDS, "hours of a pack": _HOURS}
    write_record(options.out, "benchmarks.scale", settings, findings)


def _rounded(run: dict[str, Any]) -> list[dict[str, object]]:
    return [
        {"leg, seconds": round(leg, 2), "its packs": [round(pack, 2) for pack in packs]}
        for leg, packs in zip(run["legs"], run["packs"], strict=True)
    ]


if __name__ == "__main__":
    main()
