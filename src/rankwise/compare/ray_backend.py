"""Packs on the workers of a Ray cluster. The driver plans, journals and writes all files; a worker trains one pack.

A worker is an actor with the CPUs or the GPU of one pack; Ray places it, there is no scheduler of ours. As many are
asked for as there are packs waiting, so that a cluster which grows by demand does; those that find no place stay
behind. Where a worker dies with a pack, or its GPU or disk fails, the pack goes on from its last checkpoint on another
one.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from safetensors import SafetensorError

from rankwise.base.source import snapshot
from rankwise.compare.backends import Done, Job, PackObserver, PackOutOfMemoryError, WorkerLost, Workers
from rankwise.compare.plan import divide
from rankwise.compare.prepare import Prepared
from rankwise.compare.ray_worker import News, Order, Worker, WorkerSetup, versions
from rankwise.durable import write_file
from rankwise.errors import RunError, UserError, reason_of
from rankwise.records import Trial
from rankwise.train.failure import is_device_failure, is_out_of_memory

_MOST_LOST = 3  # workers that die with one pack, or while they load the base model, one after another
_KNOCK = 10.0  # seconds for a cluster to answer
_PATIENCE = 60.0  # seconds without any worker, until that is told
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot"}  # weights that are not read

_log = logging.getLogger(__name__)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, for the `with` block: a cluster at an address, or one that is started here and ends with it.

    One that the process has joined before is used, and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    # Neither pages nor statistics; what workers print goes to Ray's logs.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # By default Ray's workers yield to all else on a machine (15), and may starve where it has other work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if address == "local":
        quiet["include_dashboard"] = False
    try:
        _knock(address)
        with warnings.catch_warnings(action="ignore"):
            ray.init(address, **quiet)
    # What Ray and its client raise where nobody answers has no common class.
    except Exception as error:
        if address == "local":
            raise UserError(f"backend: Ray cannot be started here ({_line(error)})") from error
        raise UserError(
            f"address: no Ray cluster answers at {address} ({_line(error)}); start one with `ray start --head`, "
            "or leave --address out to have one started here"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens: Ray itself would try for minutes, and say so."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK).close()


@dataclass
class _Hand:
    """A worker as the driver knows it: what it waits for from it, and the pack that it trains, if any."""

    actor: Any
    answer: Any
    job: Job | None = None
    where: str = "that was still starting"


class Ray:
    """Packs side by side, on workers that are kept until the backend is closed."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._hands: list[_Hand] = []
        self._shared: tuple[Any, Any] | None = None
        self._starts_lost = 0
        self._hinted = False
        threads = torch.get_num_threads()
        if prepared.base.device.type == "cuda":
            self._needs = {"num_cpus": 1, "num_gpus": 1}
        else:
            # A share that no node has would be waited for in vain; the threads are the same, and so are the bits.
            largest = max((int(node["Resources"].get("CPU", 0)) for node in _nodes()), default=0)
            self._needs = {"num_cpus": min(threads, largest or threads)}

    def train(self, jobs: Sequence[Job], observe: PackObserver) -> Generator[Done | WorkerLost]:
        waiting, lost = deque(jobs), Counter[str]()
        too_large: PackOutOfMemoryError | None = None
        working = 0
        self._hint([trial for job in jobs for trial in job.pack.trials], len(jobs))
        try:
            while True:
                if too_large is None:
                    self._give_out(waiting)
                at_work = [hand for hand in self._hands if hand.job is not None]
                if not at_work and (too_large is not None or not waiting):
                    break
                if len(at_work) != working:
                    working = len(at_work)
                    observe(Workers(working))
                for hand in self._answering(at_work if too_large is not None or not waiting else self._hands):
                    job = hand.job
                    try:
                        answer = ray.get(hand.answer)
                    except RayError as error:
                        cause = error.cause if isinstance(error, RayTaskError) else error
                        if isinstance(cause, RayError) or _machine_failed(cause, at_work=job is not None):
                            self._dismiss(hand)
                            if job is not None:
                                yield WorkerLost(job.pack, _died(hand, cause))
                                waiting.appendleft(job)
                            self._lose(hand, cause, lost)
                            continue
                        if job is None:
                            raise RunError(f"a Ray worker cannot load the base model: {_line(cause)}") from cause
                        if not is_out_of_memory(cause):
                            raise cause from None
                        if too_large is None:
                            too_large = PackOutOfMemoryError(job.pack, cause)
                        hand.job = hand.answer = None
                        continue
                    if job is None:
                        hand.where = "process {1} on node {0}".format(*answer)
                        hand.answer, self._starts_lost = None, 0
                    elif (done := self._heard(hand, job, answer, observe)) is not None:
                        yield done
            if too_large is not None:
                raise too_large
        finally:
            # Whoever still trains does so for nobody; whoever has no place yet would take one for nothing.
            for hand in [hand for hand in self._hands if hand.answer is not None]:
                self._dismiss(hand)

    def close(self) -> None:
        for hand in list(self._hands):
            self._dismiss(hand)

    def _give_out(self, waiting: deque[Job]) -> None:
        """A pack to each idle worker, and a worker on order for each pack that is left."""
        for hand in self._hands:
            if waiting and hand.answer is None:
                hand.job = waiting.popleft()
                hand.actor.start.remote(_order(hand.job))
                hand.answer = hand.actor.news.remote()
        if self._starts_lost >= _MOST_LOST and self._hands:
            return  # where more cannot start, those that have do the rest
        on_order = sum(hand.job is None for hand in self._hands)
        for _ in range(len(waiting) - on_order):
            actor = ray.remote(Worker).options(max_restarts=0, **self._needs).remote()
            self._hands.append(_Hand(actor, actor.prepare.remote(*self._shared_objects())))

    def _answering(self, hands: Sequence[_Hand]) -> list[_Hand]:
        """Those that have answered, once one has."""
        answers = [hand.answer for hand in hands]
        ready, _ = ray.wait(answers, timeout=_PATIENCE, fetch_local=False)
        if not ready and not any(hand.job for hand in hands):
            needs = ", ".join(
                f"{count} {name.removeprefix('num_')[:-1].upper()}" for name, count in self._needs.items()
            )
            _log.warning("backend: no worker has started yet; each needs a node of the Ray cluster with %s free", needs)
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=0, fetch_local=False)
        return [hand for hand in hands if hand.answer in ready]

    def _heard(self, hand: _Hand, job: Job, news: News, observe: PackObserver) -> Done | None:
        """Take a worker's news; the pack, where it is trained."""
        if (checkpoint := news.checkpoint) is not None:
            job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            write_file(job.checkpoint, checkpoint.tofile)
        for report in news.reports:
            observe(report)
        if news.trained is None:
            hand.answer = hand.actor.news.remote()
            return None
        hand.job = hand.answer = None
        return Done(job.pack, news.trained, news.seconds)

    def _lose(self, hand: _Hand, error: Exception, lost: Counter[str]) -> None:
        """Count a worker that died, or whose machine failed. Raises `RunError` where too many have."""
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise RunError(f"a Ray worker cannot start: {_line(error)}; is rankwise installed on all nodes?") from error
        if hand.job is None:
            self._starts_lost += 1
            if self._starts_lost >= _MOST_LOST and not self._hands:
                raise RunError(
                    f"{self._starts_lost} Ray workers in a row died while they loaded the base model ({_line(error)}); "
                    "see the cluster's logs, then go on with --resume"
                ) from error
            return
        pack = hand.job.pack.id
        lost[pack] += 1
        if lost[pack] == _MOST_LOST:
            raise RunError(
                f"{_MOST_LOST} Ray workers died with {pack}, the last one, {_died(hand, error)}; "
                "see the cluster's logs, then go on with --resume, with a smaller --pack-size if memory was short"
            ) from error

    def _dismiss(self, hand: _Hand) -> None:
        self._hands.remove(hand)
        ray.kill(hand.actor)

    def _shared_objects(self) -> tuple[Any, Any]:
        """The setup and the task in the object store, put there once."""
        if self._shared is None:
            prepared = self._prepared
            base, task = prepared.base, prepared.task
            setup = WorkerSetup(
                files=_model_files(snapshot(base.name, base.revision)),
                num_labels=None if base.causal else len(task.labels),
                dtype=base.dtype,
                device=base.device.type,
                quantize=base.quantize,
                trust_remote_code=prepared.config.trust_remote_code,
                targets=prepared.targets,
                settings=prepared.settings,
                threads=torch.get_num_threads(),
                versions=versions(),
            )
            try:
                self._shared = ray.put(setup), ray.put(task)
            except RayError as error:
                raise RunError(f"the base model does not fit Ray's object store: {_line(error)}") from error
        return self._shared

    def _hint(self, trials: Sequence[Trial], packs: int) -> None:
        """Say once what pack size would give every worker a pack, where there are fewer packs than workers."""
        name = "GPU" if "num_gpus" in self._needs else "CPU"
        a_worker = self._needs.get("num_gpus") or self._needs["num_cpus"]
        places = sum(int(node["Resources"].get(name, 0) // a_worker) for node in _nodes())
        if packs < places and not self._hinted:
            sizes = range(max(1, -(-len(trials) // packs)), 0, -1)
            size = next((size for size in sizes if len(divide(trials, size)) >= places), 1)
            if len(divide(trials, size)) > packs:
                _log.warning(
                    "backend: packs for %d of %d workers; a new run with --pack-size %d would use more",
                    packs,
                    places,
                    size,
                )
            self._hinted = True


def _nodes() -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"]]


def _model_files(directory: Path) -> dict[str, np.ndarray]:
    return {
        file.name: np.fromfile(file, np.uint8)
        for file in sorted(directory.iterdir())
        if file.is_file() and file.suffix not in _PICKLED
    }


def _order(job: Job) -> Order:
    if job.checkpoint.exists():
        return Order(job.pack, {}, np.fromfile(job.checkpoint, np.uint8), str(job.checkpoint.parent))
    begin = {state.name: np.fromfile(state, np.uint8) for state in job.begin}
    return Order(job.pack, begin, None, str(job.checkpoint.parent))


def _machine_failed(error: Exception, *, at_work: bool) -> bool:
    """Whether a worker's GPU or disk did, which another may have; memory that is out is told apart."""
    if is_out_of_memory(error):
        return False
    # Without a number it is transformers', of the model's files, which are the same everywhere.
    of_the_system = isinstance(error, OSError) and error.errno is not None
    return is_device_failure(error) or of_the_system or (at_work and isinstance(error, SafetensorError))


def _died(hand: _Hand, error: Exception) -> str:
    return f"{hand.where}: {_line(error)}"


def _line(error: BaseException) -> str:
    """What an error says, in one line; of a traceback from afar, its end."""
    told = str(error).strip()
    if told and ("Traceback" in told or isinstance(error, RayTaskError)):
        return told.splitlines()[-1].strip()[:300]
    return reason_of(error)
