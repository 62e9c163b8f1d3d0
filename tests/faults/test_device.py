"""A device that fails, and a clock that jumps, while a pack trains."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise import ComparisonConfig, RunError, plan_rank_comparison, run_rank_comparison
from rankwise.train import loop
from rankwise.train.failure import device_failure_told, is_out_of_memory
from tests.compare.runs import journal, numbers

pytestmark = pytest.mark.usefixtures("given_costs")

LOST = (
    "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API call"
)


def test_a_gpu_that_is_lost_is_told_and_the_run_goes_on(
    config: ComparisonConfig, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = loop.train_step, itertools.count()

    def lost(*arguments: Any) -> Any:
        if next(steps) == 7:
            raise torch.AcceleratorError(LOST)
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", lost)
        with pytest.raises(RunError) as error:
            run_rank_comparison(config, run=tmp_path / "run")
    assert str(error.value) == (
        "the device failed (CUDA error: unspecified launch failure); go on with --resume once it works again"
    )
    run_rank_comparison(config, run=tmp_path / "run", resume=True)
    assert numbers(tmp_path / "run") == numbers(undisturbed)


def test_a_gpu_that_is_lost_to_a_plan(config: ComparisonConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*arguments: object) -> None:
        raise RuntimeError(LOST)

    monkeypatch.setattr("rankwise.compare.preview.measure_costs", lost)
    with pytest.raises(RunError, match=r"^the device failed .*; run this again once it works$"):
        plan_rank_comparison(config)


@pytest.mark.parametrize(
    ("error", "out_of_memory", "failed"),
    [
        (torch.AcceleratorError("CUDA error: out of memory\nhints"), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True, False),
        (RuntimeError("could not create a primitive"), True, False),
        (RuntimeError("could not create a memory"), True, False),
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), False, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("HIP error: invalid device function"), False, True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False, False),
        (NotImplementedError("an operator that this device lacks"), False, False),
    ],
)
def test_errors_of_devices_are_told_apart(error: RuntimeError, out_of_memory: bool, failed: bool) -> None:
    assert is_out_of_memory(error) == out_of_memory
    with pytest.raises(RunError if failed else type(error)), device_failure_told("try again"):
        raise error


def test_no_duration_comes_from_a_clock_that_jumps(
    config: ComparisonConfig, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours back and forth, as when a machine's time is set, or summer ends."""
    now, jumps = time.time, itertools.cycle([0.0, -7200.0, 10_800.0])
    monkeypatch.setattr("time.time", lambda: now() + next(jumps))
    started = time.monotonic()
    comparison = run_rank_comparison(config, run=tmp_path / "run")
    taken = time.monotonic() - started
    spans = [
        event["seconds"]
        for kind in ("baseline", "costs", "trained", "scored")
        for event in journal(comparison.run, kind)
    ]
    assert len(spans) > 4
    assert all(0 <= span <= taken for span in spans)
    assert 0 < comparison.wall_seconds <= taken
    assert numbers(comparison.run) == numbers(undisturbed)
