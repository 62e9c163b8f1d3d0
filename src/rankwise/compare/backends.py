"""Where packs are trained: one after another in this process, or on the workers of a Ray cluster.

A backend is handed the packs of a leg, none of which waits for another, and tells of each when it is trained, in
whatever order. Planning, journaling and what a pack leaves in the run directory are its caller's; only a pack's
checkpoint is the backend's to write.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from rankwise.compare.config import ComparisonConfig
from rankwise.compare.plan import PlannedPack
from rankwise.compare.prepare import Prepared
from rankwise.errors import UserError
from rankwise.train.failure import is_out_of_memory
from rankwise.train.loop import StepReport, TrainedTrial, run_pack


@dataclass(frozen=True)
class Job:
    """A pack to train: on from `checkpoint` where that file is, else from the trials' states in `begin`, if any."""

    pack: PlannedPack
    begin: tuple[Path, ...]
    checkpoint: Path


@dataclass(frozen=True)
class Done:
    """A pack is trained; `seconds` is what it took from its start, or from where it was gone on with."""

    pack: PlannedPack
    trained: Sequence[TrainedTrial]
    seconds: float


@dataclass(frozen=True)
class WorkerLost:
    """A worker died with this pack, which goes on from its last checkpoint on another one."""

    pack: PlannedPack
    reason: str


@dataclass(frozen=True)
class Workers:
    """So many workers train packs now."""

    count: int


PackObserver: TypeAlias = Callable[[StepReport | Workers], None]


class PackOutOfMemoryError(Exception):
    """There is too little memory for this pack; `cause` is what its device said."""

    def __init__(self, pack: PlannedPack, cause: Exception) -> None:
        super().__init__(pack.id)
        self.pack, self.cause = pack, cause


class Backend(Protocol):
    """Trains packs over one base model."""

    def train(self, jobs: Sequence[Job], observe: PackObserver) -> Generator[Done | WorkerLost]:
        """Train all packs. Raises `PackOutOfMemoryError` once what else was begun is done."""

    def close(self) -> None:
        """Give back what the backend holds."""


class Local:
    """Packs one after another, in this process."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def train(self, jobs: Sequence[Job], observe: PackObserver) -> Generator[Done | WorkerLost]:
        for job in jobs:
            started = time.monotonic()
            try:
                trained = run_pack(
                    self._prepared.base,
                    self._prepared.task,
                    job.pack.trials,
                    self._prepared.targets,
                    self._prepared.settings,
                    begin=job.begin,
                    stop=job.pack.stop,
                    checkpoint=job.checkpoint,
                    observe=observe,
                )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise PackOutOfMemoryError(job.pack, error) from error
            yield Done(job.pack, trained, time.monotonic() - started)

    def close(self) -> None:
        return None


@contextmanager
def cluster(config: ComparisonConfig) -> Iterator[None]:
    """The cluster that the configuration names, for the `with` block. Raises `UserError` where there is none."""
    if config.backend == "local":
        yield
        return
    if importlib.util.find_spec("ray") is None:
        raise UserError("backend: ray is not installed: pip install 'rankwise[ray]'")
    from rankwise.compare.ray_backend import connected

    with connected(config.address):
        yield


def backend_for(prepared: Prepared) -> Backend:
    """The backend that the configuration names; within `cluster`."""
    if prepared.config.backend == "local":
        return Local(prepared)
    from rankwise.compare.ray_backend import Ray

    return Ray(prepared)
