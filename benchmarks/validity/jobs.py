"""Independent jobs on a few processes; each result is a file, so that a run that was stopped goes on."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


class Job(Protocol):
    """Work that the fields determine; its `repr` shows them all."""

    @property
    def name(self) -> str: ...

    def run(self) -> Arrays: ...


def results(jobs: Sequence[Job], work: Path, workers: int) -> list[Arrays]:
    """Every job's arrays in the order of `jobs`; those that `work` does not hold are computed first.

    Beside a job's own arrays there is `seconds`, what it took. Raises ValueError where a file in
    `work` is the result of a job with other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not _file(job, work).exists()]
    # Forked processes inherit torch's thread pools in an undefined state.
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        for done, name in enumerate(pool.imap_unordered(partial(_compute, work=work), missing), start=1):
            print(f"{done}/{len(missing)} {name}", file=sys.stderr, flush=True)
    return [_read(job, work) for job in jobs]


def _file(job: Job, work: Path) -> Path:
    return work / f"{job.name}.npz"


def _compute(job: Job, work: Path) -> str:
    started = time.perf_counter()
    arrays = job.run()
    seconds = np.array(time.perf_counter() - started)
    file = _file(job, work)
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    with beside.open("wb") as opened:
        np.savez(opened, **arrays, seconds=seconds, job=np.array(repr(job)))
    beside.replace(file)
    return f"{job.name}: {seconds:.0f} s"


def _read(job: Job, work: Path) -> Arrays:
    with np.load(_file(job, work), allow_pickle=False) as stored:
        if str(stored["job"]) != repr(job):
            raise ValueError(f"{_file(job, work)} is the result of {stored['job']}, not of {job}: use another --work")
        return {name: stored[name] for name in stored.files if name != "job"}
