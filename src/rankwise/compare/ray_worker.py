"""What runs in a Ray worker's process: a base model that is built once, and one pack after another trained on it.

Nothing is shared but Ray's object store: files come as bytes and go as bytes, so no worker needs the driver's disk or a
model hub. A pack trains in a thread of its own while the process waits to be asked for news. Asked, not told: Ray's
client (ray://) has no streaming methods, and a driver with hundreds of workers is then never flooded, since what it
had no time to ask for is joined.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TypeAlias

import numpy as np
import ray
import torch

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.quantize import Quantization
from rankwise.base.shapes import LinearLayer
from rankwise.compare.plan import PlannedPack
from rankwise.errors import RunError, UserError
from rankwise.tasks.task import Task
from rankwise.train.heap import keep_freed_memory
from rankwise.train.loop import StepReport, TrainedTrial, run_pack
from rankwise.train.settings import TrainingSettings

Files: TypeAlias = dict[str, np.ndarray]  # bytes by name; arrays of them are not copied on their way

_CHECKPOINT_SECONDS = 120.0  # between two checkpoints that are sent, beside those of evaluations
_PACKAGES = ("rankwise", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker builds its base model of, and how it trains; `threads` are those of torch on a CPU."""

    files: Files
    num_labels: int | None
    dtype: Literal["float32", "bfloat16"]
    device: str
    quantize: Quantization
    trust_remote_code: bool
    targets: tuple[LinearLayer, ...]
    settings: TrainingSettings
    threads: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Order:
    """A pack to train: from its `checkpoint` where it has one, else on from the trials' states in `begin`, if any.

    `directory` is where the driver has them, which errors name.
    """

    pack: PlannedPack
    begin: Files
    checkpoint: np.ndarray | None
    directory: str


@dataclass(frozen=True)
class News:
    """What happened since the last news. `trained` ends a pack, `seconds` after it began."""

    reports: tuple[StepReport, ...] = ()
    checkpoint: np.ndarray | None = None
    trained: Sequence[TrainedTrial] | None = None
    seconds: float = 0.0


class Worker:
    """A Ray actor."""

    def prepare(self, setup: WorkerSetup, task: Task) -> tuple[str, int]:
        """Build the base model; the node and the process that this is. Raises `UserError` where it cannot be."""
        if (mine := versions()) != setup.versions:
            differing = [
                f"{name} {mine[name]} and not {wanted}"
                for name, wanted in setup.versions.items()
                if mine[name] != wanted
            ]
            raise UserError(f"it has {', '.join(differing)}: install the same versions on all nodes")
        self._setup, self._task = setup, task
        if setup.device == "cpu":
            torch.set_num_threads(setup.threads)
            keep_freed_memory()
        self._base = _build(setup)
        return ray.util.get_node_ip_address(), os.getpid()

    def start(self, order: Order) -> None:
        """Begin with a pack."""
        self._news: SimpleQueue[News | Exception] = SimpleQueue()
        try:
            threading.Thread(target=self._train, args=(order, self._news), daemon=True).start()
        # Nobody asks what became of this call; of threads a machine may have no more.
        except RuntimeError as error:
            self._news.put(OSError(errno.EAGAIN, str(error)))

    def news(self) -> News:
        """Wait until there is something to tell, and tell all of it. Raises what ended the pack before its time."""
        waiting = [self._news.get()]
        while not self._news.empty():
            waiting.append(self._news.get())
        return joined(waiting)

    def _train(self, order: Order, news: SimpleQueue[News | Exception]) -> None:
        started = sent = time.monotonic()
        setup, pack = self._setup, order.pack
        if setup.device == "cpu":
            torch.set_num_threads(setup.threads)  # each thread of a process has a number of its own
        with tempfile.TemporaryDirectory(prefix="rankwise-") as scratch:
            checkpoint = Path(scratch, f"{pack.id}.safetensors")

            def observe(report: StepReport) -> None:
                nonlocal sent
                evaluated = report.evaluations is not None and report.evaluations[0].step == report.step
                if evaluated or (time.monotonic() - sent > _CHECKPOINT_SECONDS and checkpoint.exists()):
                    news.put(News((report,), np.fromfile(checkpoint, np.uint8)))
                    sent = time.monotonic()
                else:
                    news.put(News((report,)))

            try:
                if order.checkpoint is not None:
                    order.checkpoint.tofile(checkpoint)
                trained = run_pack(
                    self._base,
                    self._task,
                    pack.trials,
                    setup.targets,
                    setup.settings,
                    begin=_written(order.begin, Path(scratch)),
                    stop=pack.stop,
                    checkpoint=checkpoint,
                    observe=observe,
                )
            except RunError as error:
                news.put(RunError(str(error).replace(scratch, order.directory)))
            # Whatever it is, the driver is to know of it; a thread's errors reach nobody.
            except Exception as error:
                news.put(error)
            else:
                news.put(News(trained=trained, seconds=time.monotonic() - started))


def joined(waiting: Sequence[News | Exception]) -> News:
    """All news in one: the last checkpoint, the last report, and those of evaluations. Raises what is an error."""
    for one in waiting:
        if isinstance(one, Exception):
            raise one
    news = [one for one in waiting if isinstance(one, News)]
    reports = [(report, one.checkpoint is not None) for one in news for report in one.reports]
    checkpoints = [one.checkpoint for one in news if one.checkpoint is not None]
    return News(
        tuple(report for number, (report, kept) in enumerate(reports, start=1) if kept or number == len(reports)),
        checkpoints[-1] if checkpoints else None,
        news[-1].trained,
        news[-1].seconds,
    )


def versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def _build(setup: WorkerSetup) -> BaseModel:
    with tempfile.TemporaryDirectory(prefix="rankwise-") as directory:
        _written(setup.files, Path(directory))
        options: dict[str, Any] = {
            "num_labels": setup.num_labels,
            "dtype": setup.dtype,
            "device": setup.device,
            "quantize": setup.quantize,
            "trust_remote_code": setup.trust_remote_code,
        }
        return load_base(directory, **options)


def _written(files: Files, directory: Path) -> list[Path]:
    for name, content in files.items():
        content.tofile(directory / name)
    return [directory / name for name in files]
