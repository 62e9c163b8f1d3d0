"""What training one rank alone costs: the time of its step and the memory of its largest step; and a pack's step.

The first is measured apart from the packs, one trial at a time and the ranks in alternating order, because that is
what somebody pays who trains the recommended rank, and because a machine that slows down for a while
then slows every rank alike.
"""

from __future__ import annotations

import gc
import math
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.lora.attach import attached
from rankwise.records import Trial
from rankwise.tasks.task import Task, pack_rows, training_rows
from rankwise.train.heap import give_back_freed_memory
from rankwise.train.loop import PackOptimizer, checkpointed_activations, train_step
from rankwise.train.settings import TrainingSettings

_ROUNDS = 3
_TIMED_STEPS = 4  # of each rank in each round, after two that are not timed
_PACK_STEPS = 8  # after one


@dataclass(frozen=True)
class StepCost:
    """The median seconds of a rank's step alone; the peak bytes of its largest step, None where nothing counts them."""

    rank: int
    seconds: float
    peak_bytes: int | None


def measure_costs(
    base: BaseModel, task: Task, trials: Sequence[Trial], targets: Sequence[LinearLayer], settings: TrainingSettings
) -> list[StepCost]:
    """Cost of a step of each trial (one a rank), all on the same batches; training itself is not touched."""
    lengths = task.train.input_ids.lengths
    seconds: dict[int, list[float]] = {trial.rank: [] for trial in trials}
    an_epoch = math.ceil(len(lengths) / settings.batch_size)
    batches = list(islice(training_rows(lengths, settings.batch_size, seed=0), max(an_epoch, _ROUNDS * _TIMED_STEPS)))
    largest = max(batches, key=lambda rows: int(lengths[rows].max()) * len(rows))
    peaks: dict[int, list[int | None]] = {trial.rank: [] for trial in trials}
    for round_number in range(_ROUNDS):
        timed = batches[round_number * _TIMED_STEPS :][:_TIMED_STEPS]
        for trial in trials if round_number % 2 == 0 else reversed(trials):
            meter = PeakMemory(base)
            with attached(base, [trial], targets) as pack, checkpointed_activations(base, settings):
                optimizer = PackOptimizer(pack, settings)
                for number, rows in enumerate([largest, largest, *timed]):
                    if number == 1:  # the optimiser has its states from the second step on
                        meter.restart()
                    started = time.perf_counter()
                    train_step(pack, optimizer, task, [rows[None]] * settings.accumulation, number)
                    _wait(base.device)
                    if number == 1:
                        peaks[trial.rank].append(meter.bytes())
                    elif number > 1:
                        seconds[trial.rank].append(time.perf_counter() - started)
    return [
        StepCost(trial.rank, statistics.median(seconds[trial.rank]), _median_bytes(peaks[trial.rank]))
        for trial in trials
    ]


def measure_pack(
    base: BaseModel, task: Task, trials: Sequence[Trial], targets: Sequence[LinearLayer], settings: TrainingSettings
) -> float:
    """Seconds of a step of these trials together: the mean of a few, since batches are of any length."""
    with attached(base, trials, targets) as pack, checkpointed_activations(base, settings):
        optimizer = PackOptimizer(pack, settings)
        seeds = [trial.seed for trial in pack.trials]
        batches = pack_rows(task.train.input_ids.lengths, settings.batch_size, seeds)
        started = 0.0
        for number in range(1 + _PACK_STEPS):
            if number == 1:
                _wait(base.device)
                started = time.perf_counter()
            train_step(pack, optimizer, task, list(islice(batches, settings.accumulation)), 0)
        _wait(base.device)
        return (time.perf_counter() - started) / _PACK_STEPS


class PeakMemory:
    """The peak of memory since it was made, with the base model in it.

    On CUDA the device's own count of allocated bytes. On a CPU under Linux the base model's bytes and the
    growth of the process's resident memory up to its high-water mark. Elsewhere nothing counts.
    """

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self._before: int | None = None
        gc.collect()
        if self.restart() and base.device.type == "cpu":
            self._before = _resident("VmRSS")

    def restart(self) -> bool:
        """Forget peaks until now, not what was taken; whether this device counts."""
        if self.base.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.base.device)
            return True
        return self.base.device.type == "cpu" and _reset_high_water()

    def bytes(self) -> int | None:
        if self.base.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.base.device)
        if self._before is None:
            return None
        return self.base.bytes + max(0, _resident("VmHWM") - self._before)


def _median_bytes(peaks: Sequence[int | None]) -> int | None:
    # The first peak has what libraries allocate once; the median has not.
    counted = [peak for peak in peaks if peak is not None]
    return int(statistics.median(counted)) if counted else None


def _reset_high_water() -> bool:
    # What was freed and kept would hide what the next step needs.
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
