"""Packs on a cluster: the numbers of one machine, whatever dies, and errors in one line.

The cluster is one of this machine's, of two workers. Workers are processes of their own, which have nothing of what
pytest changes here.
"""

from __future__ import annotations

import errno
import gc
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from rankwise import ComparisonConfig, RankComparison, RunError, UserError, run_rank_comparison
from rankwise.compare.backends import Workers
from rankwise.compare.observer import Planned
from rankwise.records import Evaluation, Trial
from rankwise.tasks.task import Task
from rankwise.train.loop import StepReport
from tests.compare.runs import KilledError, given_costs, journal, numbers, tiny_comparison

ray = pytest.importorskip("ray")

from rankwise.compare import ray_backend, ray_worker  # noqa: E402
from rankwise.compare.ray_worker import News, Order, Worker, WorkerSetup, joined  # noqa: E402

pytestmark = pytest.mark.usefixtures("given_costs")

WORKERS = 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    return tiny_comparison(tmp_path_factory.mktemp("model") / "bert", steps=60, evaluations=3, pack_size=4)


@pytest.fixture(scope="module")
def here(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> RankComparison:
    with given_costs():
        return run_rank_comparison(config, run=tmp_path_factory.mktemp("runs") / "here")


@pytest.fixture(scope="module")
def on_ray(config: ComparisonConfig) -> Iterator[ComparisonConfig]:
    """The same on a cluster that all tests join, so that it is started once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_worker_niceness", "0")  # a busy machine's workers start, too
        ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield replace(config, backend="ray")
        # Ray does not wait for the processes that it ends.
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            ray.shutdown()
            gc.collect()


def workers() -> list[psutil.Process]:
    """The processes of this cluster's workers that have come to life."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def all_end() -> bool:
    """Whether the workers that are there end; a process takes a moment to."""
    return psutil.wait_procs(workers(), timeout=120)[1] == []


def trained(run: Path) -> list[str]:
    return sorted(event["pack"] for event in journal(run, "trained"))


def assert_alike(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    assert (one / "recommendation.json").read_bytes() == (other / "recommendation.json").read_bytes()
    assert trained(one) == trained(other)
    assert len(set(trained(one))) == len(trained(one))


@pytest.fixture
def hire(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Worker]], None]:
    """Have the backend start workers of another kind."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return lambda kind: monkeypatch.setattr(ray_backend, "Worker", kind)


class Together(Worker):
    """None is ready before all are, however slowly a busy machine starts them."""

    started: Path

    def prepare(self, setup: WorkerSetup, task: Task) -> tuple[str, int]:
        place = super().prepare(setup, task)
        (self.started / str(place[1])).touch()
        while len(list(self.started.iterdir())) < WORKERS:
            time.sleep(0.01)
        return place


def test_a_cluster_gives_the_numbers_of_one_machine(
    here: RankComparison,
    on_ray: ComparisonConfig,
    tmp_path: Path,
    hire: Callable[[type[Worker]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All packs of a leg at once, and none of them told but once."""
    (tmp_path / "started").mkdir()
    monkeypatch.setattr(Together, "started", tmp_path / "started", raising=False)
    hire(Together)
    seen: list[int] = []

    def observe(event: object) -> None:
        if isinstance(event, Workers):
            seen.append(event.count)

    there = run_rank_comparison(on_ray, run=tmp_path / "run", observe=observe)
    assert_alike(here.run, there.run)
    assert max(seen) == WORKERS
    assert list((there.run / "checkpoints").iterdir()) == []
    assert journal(there.run, "worker lost") == []
    assert all_end()
    for event in journal(there.run, "trained"):
        assert event["pack_seconds"] > 0


def test_workers_that_are_killed_change_no_number(
    here: RankComparison, on_ray: ComparisonConfig, tmp_path: Path
) -> None:
    """From the checkpoint of the first evaluation, since that is what had come to the driver's disk."""
    first = 20
    lost: set[Trial] = set()
    steps: list[int] = []

    def kill(event: object) -> None:
        if not isinstance(event, StepReport):
            return
        if not lost and event.step == first:
            lost.update(event.trials)
            for process in workers():
                os.kill(process.pid, signal.SIGKILL)
        elif set(event.trials) <= lost and event.step <= 2 * first:
            steps.append(event.step)

    there = run_rank_comparison(on_ray, run=tmp_path / "run", observe=kill)
    assert_alike(here.run, there.run)
    assert 1 <= len(journal(there.run, "worker lost")) <= WORKERS
    assert min(steps) > first


@pytest.mark.slow
def test_a_run_goes_on_wherever_it_was_begun(here: RankComparison, on_ray: ComparisonConfig, tmp_path: Path) -> None:
    """Left three times: in the first leg here, after its first pack there, at the start of the second leg here."""
    local = replace(on_ray, backend="local")

    def leave(when: Callable[[object], bool]) -> Callable[[object], None]:
        def observe(event: object) -> None:
            if when(event):
                raise KilledError

        return observe

    run = tmp_path / "run"
    with pytest.raises(KilledError):
        run_rank_comparison(local, run=run, observe=leave(lambda event: isinstance(event, StepReport)))
    with pytest.raises(KilledError):
        run_rank_comparison(
            on_ray,
            run=run,
            resume=True,
            observe=leave(lambda event: isinstance(event, StepReport) and bool(trained(run))),
        )
    assert all_end()
    begun = leave(lambda event: isinstance(event, Planned) and event.leg.start > 0)
    with pytest.raises(KilledError):
        run_rank_comparison(local, run=run, resume=True, observe=begun)
    run_rank_comparison(on_ray, run=run, resume=True)
    assert_alike(here.run, run)


class Short(Worker):
    """Memory is short for a pack of more than two trials."""

    def start(self, order: Order) -> None:
        if len(order.pack.trials) <= 2:
            super().start(order)
        else:
            self._news: SimpleQueue[News | Exception] = SimpleQueue()
            self._news.put(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))


class Doomed(Worker):
    def start(self, order: Order) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_packs_that_do_not_fit_a_worker_are_halved(
    here: RankComparison, on_ray: ComparisonConfig, tmp_path: Path, hire: Callable[[type[Worker]], None]
) -> None:
    hire(Short)
    halved = run_rank_comparison(on_ray, run=tmp_path / "run")
    assert [event["size"] for event in journal(halved.run, "out of memory")] == [2]
    assert {len(event["status"]) for event in journal(halved.run, "trained")} <= {1, 2}
    for one, other in zip(halved.experiments, here.experiments, strict=True):
        assert (one.rank, one.learning_rate) == (other.rank, other.learning_rate)
        assert one.nll == pytest.approx(other.nll, rel=1e-3)


@pytest.mark.slow
def test_a_pack_that_every_worker_dies_with_ends_the_run_in_one_line(
    on_ray: ComparisonConfig, tmp_path: Path, hire: Callable[[type[Worker]], None]
) -> None:
    hire(Doomed)
    with pytest.raises(RunError, match=r"^3 Ray workers died with pack0000, the last one, process \d+ on .*; see the"):
        run_rank_comparison(replace(on_ray, seeds=1), run=tmp_path / "run")
    assert len(journal(tmp_path / "run", "worker lost")) == 3
    assert all_end()


class Faulty(Worker):
    """The first pack of all meets a failure of its worker's machine."""

    error: Exception
    met: Path

    def start(self, order: Order) -> None:
        try:
            self.met.touch(exist_ok=False)
        except FileExistsError:
            super().start(order)
        else:
            self._news: SimpleQueue[News | Exception] = SimpleQueue()
            self._news.put(self.error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("CUDA error: unspecified launch failure\nhints"),
    ],
    ids=["disk", "checkpoint", "GPU"],
)
def test_a_pack_of_a_worker_whose_machine_fails_goes_on_elsewhere(
    error: Exception,
    here: RankComparison,
    on_ray: ComparisonConfig,
    tmp_path: Path,
    hire: Callable[[type[Worker]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Faulty, "error", error, raising=False)
    monkeypatch.setattr(Faulty, "met", tmp_path / "met", raising=False)
    hire(Faulty)
    there = run_rank_comparison(on_ray, run=tmp_path / "run")
    assert_alike(here.run, there.run)
    (lost,) = journal(there.run, "worker lost")
    assert re.fullmatch(r"process \d+ on node \S+: .*(No space left on device|launch failure).*", lost["reason"])
    assert all_end()


class Alone(Worker):
    """On all GPUs but one nothing starts."""

    first: Path

    def prepare(self, setup: WorkerSetup, task: Task) -> tuple[str, int]:
        try:
            self.first.touch(exist_ok=False)
        except FileExistsError:
            raise RuntimeError("CUDA error: no CUDA-capable device is detected") from None
        return super().prepare(setup, task)


def test_where_more_workers_cannot_start_one_does_all(
    here: RankComparison,
    on_ray: ComparisonConfig,
    tmp_path: Path,
    hire: Callable[[type[Worker]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Alone, "first", tmp_path / "first", raising=False)
    hire(Alone)
    there = run_rank_comparison(on_ray, run=tmp_path / "run")
    assert_alike(here.run, there.run)
    (tmp_path / "first").touch()
    with pytest.raises(RunError, match=r"^\d+ Ray workers in a row died while they loaded .*no CUDA-capable device"):
        run_rank_comparison(on_ray, run=tmp_path / "none")
    assert all_end()


def test_a_thread_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the driver would wait for the pack for ever."""

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker = Worker()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        worker.start(None)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="can't start new thread"):
        worker.news()


def test_a_worker_that_cannot_load_the_base_model_is_told(
    on_ray: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_backend, "_model_files", lambda directory: {"config.json": np.frombuffer(b"{}", np.uint8)})
    with pytest.raises(RunError, match=r"^a Ray worker cannot load the base model: .*config.json") as error:
        run_rank_comparison(replace(on_ray, seeds=1), run=tmp_path / "run")
    assert str(error.value).isprintable()
    assert all_end()


def test_a_worker_with_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    setup: Any = type("", (), {"versions": ray_worker.versions() | {"torch": "1.0"}})
    with pytest.raises(UserError, match=r"it has torch \S+ and not 1\.0: install the same versions on all nodes"):
        Worker().prepare(setup, task=None)  # type: ignore[arg-type]


TRIALS = (Trial(2, 2.0, False, 1e-3, 0),)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.booleans())
def test_news_that_wait_are_joined_and_no_evaluation_is_lost(evaluated: Sequence[bool], ended: bool) -> None:
    waiting: list[News | Exception] = []
    for step, at in enumerate(evaluated, start=1):
        evaluations = (Evaluation(step, 0.5, 0.5),) if at else None
        checkpoint = np.array([step], np.uint8) if at else None
        waiting.append(News((StepReport(TRIALS, step, (0.5,), evaluations),), checkpoint))
    if ended:
        waiting.append(News(trained=[], seconds=2.0))
    one = joined(waiting)
    steps = [step for step, at in enumerate(evaluated, start=1) if at]
    assert [report.step for report in one.reports] == sorted({*steps, len(evaluated)})
    assert (one.checkpoint is None) == (not steps)
    if one.checkpoint is not None:
        assert one.checkpoint.tolist() == steps[-1:]
    assert (one.trained, one.seconds) == (([], 2.0) if ended else (None, 0.0))
    with pytest.raises(MemoryError):
        joined([*waiting, MemoryError()])


def test_ray_that_is_not_installed_is_told(config: ComparisonConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else find(name))
    with pytest.raises(UserError, match=r"^backend: ray is not installed: pip install 'rankwise\[ray\]'$"):
        run_rank_comparison(replace(config, backend="ray"))


def test_a_cluster_that_does_not_answer_is_told(config: ComparisonConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*arguments: object, **options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(UserError) as error:
        run_rank_comparison(replace(config, backend="ray", address="auto"))
    assert str(error.value) == (
        "address: no Ray cluster answers at auto (Could not find any running Ray instance. Please specify the one to "
        "connect to.); start one with `ray start --head`, or leave --address out to have one started here"
    )


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_where_nobody_listens_is_told_at_once(
    form: str, config: ComparisonConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])  # free again when it is asked for
    with pytest.raises(UserError, match=f"^address: no Ray cluster answers at {address} .*refused"):
        run_rank_comparison(replace(config, backend="ray", address=address))


def test_an_address_without_ray_is_refused() -> None:
    with pytest.raises(UserError, match="address: only backend ray has one"):
        ComparisonConfig(task="docmatch", address="auto")


def test_a_run_that_ended_here_is_read_there(here: RankComparison, on_ray: ComparisonConfig, tmp_path: Path) -> None:
    """Where a run is trained is no part of what it is."""
    shutil.copytree(here.run, tmp_path / "run")
    again = run_rank_comparison(on_ray, run=tmp_path / "run", resume=True)
    assert again.experiments == here.experiments
    assert journal(again.run, "trained") == journal(here.run, "trained")
    assert json.loads((again.run / "comparison.json").read_text())["config"]["backend"] == "ray"
