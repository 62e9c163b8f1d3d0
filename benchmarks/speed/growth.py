"""How time and memory grow: with the trials of a pack, their rank, the texts' length, and the examples to score.

python -m benchmarks.speed.growth --out benchmarks/results/growth_cpu.json

MiniLM on random tokens, batches of 16, LoRA on every linear layer; each measurement in a process of its own, in rounds
of alternating order, medians reported. Beside packs stands PEFT, which trains one trial at a time, in a bare loop over
the same base. Memory is that of the base model and what the largest step adds to the process.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.speed.contestants import CPU, RATE
from benchmarks.speed.measure import WARM_UP, alone, seconds
from benchmarks.validity.record import write_record
from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import match_targets
from rankwise.lora.attach import attached
from rankwise.records import Trial
from rankwise.tasks.task import Ragged, Split, Task, collate
from rankwise.train.cost import PeakMemory
from rankwise.train.loop import PackOptimizer, score, train_step
from rankwise.train.settings import TrainingSettings

BATCH, STEPS = 16, 6

Measured = dict[str, float]
Point = Callable[[], Measured]


def random_task(base: BaseModel, examples: int, length: int) -> Task:
    generator = np.random.default_rng(0)
    vocabulary = base.model.get_input_embeddings().num_embeddings
    rows = generator.integers(0, vocabulary, (examples, length)).tolist()
    split = Split(np.arange(examples), Ragged.from_rows(rows), None, generator.integers(0, 2, examples), None)
    return Task("random", ("0", "1"), 2, split, split, split, pad_token_id=0)


def pack(trials: int, rank: int, length: int) -> Measured:
    """A step of so many trials."""
    base = load_base("embedded", num_labels=2, device="cpu")
    task = random_task(base, BATCH, length)
    meter, rows = PeakMemory(base), np.tile(np.arange(BATCH), (trials, 1))
    members = [Trial(rank, float(rank), False, RATE / (1 + position), 0) for position in range(trials)]
    with attached(
        base, members, match_targets(base.model, "all-linear", trained=base.trained_modules)
    ) as attached_pack:
        optimizer = PackOptimizer(attached_pack, TrainingSettings(steps=WARM_UP + STEPS, batch_size=BATCH))
        took = seconds(lambda number: train_step(attached_pack, optimizer, task, [rows], number), CPU, STEPS)
    return _measured(took, meter)


def with_peft(rank: int, length: int) -> Measured:
    """A step of one trial."""
    base = load_base("embedded", num_labels=2, device="cpu")
    task = random_task(base, BATCH, length)
    meter, batch = PeakMemory(base), collate(task.train, np.arange(BATCH), 0)
    model = get_peft_model(base.model, LoraConfig(r=rank, target_modules="all-linear", task_type="SEQ_CLS")).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)

    def step(number: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=base.dtype == "bfloat16"):
            model(**batch.inputs, labels=batch.labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return _measured(seconds(step, CPU, STEPS), meter)


def scoring(examples: int, length: int) -> Measured:
    """The scores of one adapter on so many examples."""
    base = load_base("embedded", num_labels=2, device="cpu")
    task = random_task(base, examples, length)
    targets = match_targets(base.model, "all-linear", trained=base.trained_modules)
    with attached(base, [Trial(16, 16.0, False, RATE, 0)], targets):
        score(base, 1, task, random_task(base, BATCH, length).test)
        meter, started = PeakMemory(base), time.perf_counter()
        score(base, 1, task, task.test)
        return _measured(time.perf_counter() - started, meter)


def _measured(took: float, meter: PeakMemory) -> Measured:
    peak = meter.bytes()
    return {"seconds": took} | ({} if peak is None else {"peak bytes": peak})


def axes() -> dict[str, dict[int, Point]]:
    """What grows, and what is measured at each of its values; the rest is 8 trials of rank 16 and 64 tokens."""
    return {
        "trials of a pack": {trials: partial(pack, trials, 16, 64) for trials in (1, 2, 4, 8, 16)},
        "rank": {rank: partial(pack, 8, rank, 64) for rank in (4, 8, 16, 32, 64)},
        "tokens of a text": {length: partial(pack, 8, 16, length) for length in (32, 64, 128, 256)},
        "examples scored": {examples: partial(scoring, examples, 64) for examples in (500, 1000, 2000, 4000)},
        "PEFT, one trial, rank": {rank: partial(with_peft, rank, 64) for rank in (4, 16, 64)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args()
    points = [(name, value, point) for name, axis in axes().items() for value, point in axis.items()]
    found: dict[tuple[str, int], list[Measured]] = {(name, value): [] for name, value, _ in points}
    for number in range(options.rounds):
        for name, value, point in points if number % 2 == 0 else reversed(points):
            found[name, value].append(alone(point))
            print(f"round {number + 1}: {name} {value}: {found[name, value][-1]}", flush=True)
    findings = {name: _grown({value: found[name, value] for value in axis}) for name, axis in axes().items()}
    settings = {"rounds": options.rounds, "batch size": BATCH, "steps": STEPS, "model": "MiniLM, random tokens"}
    write_record(options.out, "benchmarks.speed.growth", settings, findings)


def _grown(axis: dict[int, list[Measured]]) -> dict[str, Any]:
    """Medians at each value, and by which power of the value they grew over the last step."""
    medians = {value: {name: median(one[name] for one in found) for name in found[0]} for value, found in axis.items()}
    (before, less), (last, more) = list(medians.items())[-2:]
    powers = {name: round(math.log(more[name] / less[name]) / math.log(last / before), 2) for name in more}
    return {"at": medians, "power over the last step": powers}


if __name__ == "__main__":
    main()
