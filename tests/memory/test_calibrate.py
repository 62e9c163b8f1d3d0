"""Estimates corrected by a real step."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rankwise.errors import UserError
from rankwise.memory import calibrate
from rankwise.memory.calibrate import calibration
from rankwise.memory.cuda import LARGER_WORKSPACE_BYTES, WORKSPACE_BYTES
from rankwise.memory.estimate import estimate_ranks
from rankwise.memory.estimated import EstimatedModel
from rankwise.memory.settings import Method
from rankwise.records import Calibration
from tests.memory.test_simulate import step_settings
from tests.models import tiny_config

STEP = step_settings()
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="here the device at hand is a GPU")


def subject_of(architecture: str, method: Method = "simulate") -> EstimatedModel:
    return EstimatedModel(tiny_config(architecture), "all-linear", method)


@without_cuda
@pytest.mark.parametrize("changed", [{}, {"checkpointing": True}, {"quantize": "nf4"}])
def test_a_real_step_on_the_cpu_takes_what_was_simulated_for_it(changed: dict[str, object]) -> None:
    """To the byte, so nothing is left to correct."""
    settings = step_settings(**changed)
    plain = estimate_ranks(tiny_config("llama"), [2, 8], settings=settings)
    corrected = estimate_ranks(tiny_config("llama"), [2, 8], settings=settings, calibrate=True)
    real = corrected.calibration
    assert real is not None
    assert (real.device, real.rank, real.measured_bytes) == ("cpu", 8, real.estimated_bytes)
    assert corrected.ranks == plain.ranks
    assert corrected.full_fine_tuning == plain.full_fine_tuning


@without_cuda
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_formula_is_corrected_to_what_the_step_takes(architecture: str) -> None:
    subject = subject_of(architecture, "formula")
    before = subject.memory(8, STEP)
    real = subject.calibration = calibration(subject, 8, STEP)
    assert real.measured_bytes != before.peak_bytes
    after = subject.memory(8, STEP)
    assert after.peak_bytes == pytest.approx(real.measured_bytes, abs=2)
    assert after.memory.total == after.peak_bytes <= after.reserved_bytes <= after.peak_bytes_high


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.2])
def test_what_is_known_to_the_byte_is_not_corrected(factor: float) -> None:
    subject = subject_of("llama")
    before = subject.memory(4, STEP)
    subject.calibration = Calibration("a device", 4, 1, 1, None, None, activations_factor=factor, reserved_factor=1.1)
    after = subject.memory(4, STEP)
    for part in ("base_weights", "adapter_weights", "gradients", "optimizer_states"):
        assert getattr(after.memory, part) == getattr(before.memory, part)
    for part in ("activations", "overhead"):
        assert getattr(after.memory, part) == round(factor * getattr(before.memory, part))
    assert sum(dataclasses.astuple(after.memory)) == after.peak_bytes
    assert after.peak_bytes_low <= after.peak_bytes <= after.reserved_bytes <= after.peak_bytes_high


@pytest.mark.parametrize(("capability", "workspace"), [((8, 0), WORKSPACE_BYTES), ((9, 0), LARGER_WORKSPACE_BYTES)])
def test_on_cuda_the_devices_counters_are_what_was_measured(
    capability: tuple[int, int], workspace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real steps are taken, here on the CPU; the counters are made up, with 1,000 bytes that were there before."""
    subject, taken = subject_of("llama"), []
    without = subject.memory(4, STEP).peak_bytes - 2 * WORKSPACE_BYTES
    subject.workspace_bytes = workspace
    estimate = subject.memory(4, STEP)
    assert estimate.peak_bytes == without + 2 * workspace
    subject.workspace_bytes = 0
    counters = {
        "empty_cache": lambda: None,
        "synchronize": lambda device: None,
        "get_device_name": lambda device: "a GPU",
        "get_device_capability": lambda device: capability,
        "memory_allocated": lambda device: 1_000,
        "memory_reserved": lambda device: 2_000,
        "reset_peak_memory_stats": taken.append,
        "max_memory_allocated": lambda device: 1_000 + estimate.peak_bytes + 50_000,
        "max_memory_reserved": lambda device: 2_000 + 2 * estimate.reserved_bytes,
    }
    for name, counter in counters.items():
        monkeypatch.setattr(torch.cuda, name, counter)
    subject.calibration = calibrate._on_cuda(subject, 4, STEP, torch.device("cpu"))
    after = subject.memory(4, STEP)
    assert len(taken) == 2
    assert after.peak_bytes == pytest.approx(estimate.peak_bytes + 50_000, abs=2)
    assert after.reserved_bytes == 2 * estimate.reserved_bytes


def test_a_device_without_room_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for name in ("empty_cache", "memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(calibrate, "_take_two_steps", full)
    with pytest.raises(UserError, match=r"^calibrate: the step takes about .* GB, for which a GPU has no room; "):
        calibrate._on_cuda(subject_of("llama"), 4, STEP, torch.device("cpu"))


@without_cuda
def test_a_step_that_memory_has_no_room_for_is_not_begun() -> None:
    with pytest.raises(UserError, match="for which this machine has no room; calibrate with a smaller batch-size"):
        calibration(subject_of("llama"), 4, step_settings(batch_size=10**9))


def test_packs_are_not_calibrated() -> None:
    with pytest.raises(UserError, match="leave out --engine pack"):
        estimate_ranks(tiny_config("llama"), [4], settings=STEP, pack_size=2, calibrate=True)


def test_where_nothing_is_uncertain_nothing_is_corrected() -> None:
    """The formula's peak may be the end of the backward pass, where all is known."""
    assert calibrate._factor(measured=5, estimated=4, uncertain=0) == 1
