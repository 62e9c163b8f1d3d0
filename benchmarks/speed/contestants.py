"""Who runs in the throughput benchmark.

Each is timed over an epoch, all of which are made of the same rows, after one in which a process takes from the system
what memory it needs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, get_linear_schedule_with_warmup

from benchmarks.speed.measure import Step, must_do, peak_flops, seconds
from benchmarks.speed.user import Habit, User
from rankwise.base.model import DTYPES
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.prepare import Prepared, prepare
from rankwise.lora.attach import attached
from rankwise.tasks.task import pack_rows
from rankwise.train.loop import PackOptimizer, train_step

CPU = torch.device("cpu")
RATE = 1e-3


def quiet(text: str, share: float | None = None) -> None:
    return None


def epoch_steps(config: ComparisonConfig) -> int:
    assert config.max_train_examples is not None
    return math.ceil(config.max_train_examples / config.batch_size)


def time_pack(config: ComparisonConfig, rank: int, trials: int) -> float:
    """Seconds a step of this project's pack of so many trials, which differ in their learning rates and seeds."""
    steps = epoch_steps(config)
    with step_of_pack(prepare(config, quiet), rank, trials) as step:
        return seconds(step, CPU, steps, steps)


@contextmanager
def step_of_pack(prepared: Prepared, rank: int, trials: int) -> Iterator[Step]:
    """What takes a step of the pack, by its number within two epochs."""
    config, lengths = prepared.config, prepared.task.train.input_ids.lengths
    members = [config.trial(rank, RATE / (1 + position), position % 3) for position in range(trials)]
    batches = pack_rows(lengths, config.batch_size, [trial.seed for trial in members])
    rows = list(islice(batches, 2 * epoch_steps(config)))
    with attached(prepared.base, members, prepared.targets) as pack:
        optimizer = PackOptimizer(pack, prepared.settings)

        def step(number: int) -> None:
            train_step(pack, optimizer, prepared.task, [rows[number]], number)

        yield step


def time_loop(config: ComparisonConfig, rank: int, habit: Habit) -> float:
    """Seconds a step of PEFT in a loop as PyTorch's tutorials have it, without a Trainer.

    Who writes the loop has no sampler that groups rows by length.
    """
    user, steps = User(config, habit), epoch_steps(config)
    model = user.model(config.trial(rank, RATE, 0)).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 2 * steps)
    batches = _forever(DataLoader(user.train, config.batch_size, shuffle=True, collate_fn=user.collator))  # type: ignore[arg-type]

    def step(number: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=user.tuned):
            loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return seconds(step, CPU, steps, steps)


def _forever(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


class _Clock(TrainerCallback):
    """When the first so many steps ended, and when the last."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.started = self.ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.ended = time.perf_counter()
        if state.global_step == self.warm_up:
            self.started = self.ended


def time_trainer(config: ComparisonConfig, rank: int, habit: Habit) -> float:
    """Seconds a step of PEFT under transformers' Trainer."""
    user, steps = User(config, habit), epoch_steps(config)
    clock = _Clock(steps)
    trial = config.trial(rank, RATE, 0)
    with TemporaryDirectory() as directory:
        user.trainer(user.model(trial), trial, Path(directory), 2 * steps, clock).train()
    return (clock.ended - clock.started) / steps


def measure_limit(config: ComparisonConfig, rank: int) -> tuple[float, float, float]:
    """The machine's peak in the configuration's dtype; an example's operations, and tokens."""
    prepared: Prepared = prepare(config, quiet)
    peak = peak_flops(DTYPES[prepared.base.dtype], CPU)
    return peak, must_do(prepared, rank), float(prepared.task.train.input_ids.lengths.mean())
