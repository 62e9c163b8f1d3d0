"""Examples a second, all trials together, on the CPU: packs of this project beside PEFT's trials one after another.

python -m benchmarks.speed.throughput --out benchmarks/results/throughput_cpu.json

All train rank-r adapters on MiniLM and docmatch, on the same examples, with batches of 16. Every measurement has a
process of its own; rounds alternate their order; medians are reported, and ratios are those within the run. The other
side are the two habits of `benchmarks.speed.user`, each in a bare loop and under transformers' Trainer. Theirs to which
a ratio belongs is the Trainer as it is. The share of the peak counts the products that must be done, none for padding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.contestants import epoch_steps, measure_limit, time_loop, time_pack, time_trainer
from benchmarks.speed.measure import alone
from benchmarks.validity.record import write_record
from rankwise.compare.config import ComparisonConfig

DTYPES = ("bfloat16", "float32")
STANDARD = "Trainer, as is"

Contestant = tuple[int, Callable[..., float], tuple[Any, ...]]  # trials, what is timed, its arguments


def contestants(config: ComparisonConfig, rank: int, packs: Sequence[int]) -> dict[str, Contestant]:
    found: dict[str, Contestant] = {}
    for habit in ("as is", "tuned"):
        found[f"loop, {habit}"] = (1, time_loop, (config, rank, habit))
        found[f"Trainer, {habit}"] = (1, time_trainer, (config, rank, habit))
    for dtype in DTYPES:
        for trials in packs:
            found[f"pack of {trials}, {dtype}"] = (trials, time_pack, (replace(config, dtype=dtype), rank, trials))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=256, help="of an epoch, which is timed; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--max-length", type=int, default=128, help="default, as in run_glue.py: %(default)s")
    parser.add_argument("--rank", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 2, 4, 8], help="default: %(default)s")
    options = parser.parse_args()
    config = ComparisonConfig(
        model="embedded",
        task="docmatch",
        max_train_examples=options.examples,
        max_length=options.max_length,
        batch_size=options.batch_size,
        steps=1000,
        device="cpu",
    )
    entered = contestants(config, options.rank, options.packs)
    limits: dict[str, list[tuple[float, float, float]]] = {dtype: [] for dtype in DTYPES}
    times: dict[str, list[float]] = {name: [] for name in entered}
    for number in range(options.rounds):
        for dtype in DTYPES:
            limits[dtype].append(alone(measure_limit, replace(config, dtype=dtype), options.rank))
        for name in list(entered) if number % 2 == 0 else list(reversed(entered)):
            _, function, arguments = entered[name]
            times[name].append(alone(function, *arguments))
            print(f"round {number + 1}: {name}: {times[name][-1]:.3f} s a step", flush=True)
    peaks = {dtype: median(peak for peak, _, _ in found) for dtype, found in limits.items()}
    _, operations, tokens = limits["bfloat16"][0]
    per_step = options.examples / epoch_steps(config)
    rates = {name: entered[name][0] * per_step / median(found) for name, found in times.items()}
    findings = {
        "peak of a matrix product, FLOP/s": peaks,
        "operations that an example must have": operations,
        "tokens of an example, mean": tokens,
        "contestants": {
            name: {
                "trials": entered[name][0],
                "seconds a step, median": median(found),
                "seconds a step, each": found,
                "examples a second, all trials": rates[name],
                "tokens a second, all trials": rates[name] * tokens,
                "times the Trainer as it is": rates[name] / rates[STANDARD],
                "share of the bfloat16 peak": rates[name] * operations / peaks["bfloat16"],
            }
            for name, found in times.items()
        },
    }
    settings = {key: value for key, value in vars(options).items() if key != "out"} | {"model": "MiniLM, docmatch"}
    write_record(options.out, "benchmarks.speed.throughput", settings, findings)


if __name__ == "__main__":
    main()
