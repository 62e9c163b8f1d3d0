"""Two real training steps on the device at hand, beside what was estimated for them."""

from __future__ import annotations

import torch
from torch import nn

from rankwise.errors import UserError
from rankwise.machine import available_bytes
from rankwise.memory.build import give_storage
from rankwise.memory.cuda import workspace_bytes
from rankwise.memory.estimated import EstimatedModel
from rankwise.memory.settings import StepSettings
from rankwise.memory.simulate import fake_tensors, trace_step
from rankwise.memory.step import checkpoint_activations, make_batch, make_optimizer, step_loss
from rankwise.records import Calibration, MemoryEstimate


def calibration(subject: EstimatedModel, rank: int, settings: StepSettings) -> Calibration:
    """What two steps of this rank take on a CUDA device; without one, what storages a step on the CPU holds.

    Weights are zeros of the right size, so nothing is downloaded.

    Raises `UserError` where the device has no room for the step.
    """
    if torch.cuda.is_available():
        return _on_cuda(subject, rank, settings, torch.device("cuda", torch.cuda.current_device()))
    return _on_cpu(subject, rank, settings)


def _on_cuda(subject: EstimatedModel, rank: int, settings: StepSettings, device: torch.device) -> Calibration:
    subject.workspace_bytes = workspace_bytes(device)
    estimate = subject.memory(rank, settings)
    _forget_workspaces()
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    name = torch.cuda.get_device_name(device)
    try:
        _take_two_steps(subject.steps.model(rank, settings), settings, device)
    except torch.OutOfMemoryError as error:
        raise _no_room(estimate.peak_bytes, name) from error
    measured = torch.cuda.max_memory_allocated(device) - allocated
    measured_reserved = torch.cuda.max_memory_reserved(device) - reserved
    return Calibration(
        device=name,
        rank=rank,
        measured_bytes=measured,
        estimated_bytes=estimate.peak_bytes,
        measured_reserved_bytes=measured_reserved,
        estimated_reserved_bytes=estimate.reserved_bytes,
        activations_factor=_factor(measured, estimate.peak_bytes, _uncertain(estimate)),
        reserved_factor=measured_reserved / estimate.reserved_bytes,
    )


def _on_cpu(subject: EstimatedModel, rank: int, settings: StepSettings) -> Calibration:
    estimate = subject.memory(rank, settings)
    estimated, uncertain = estimate.peak_bytes, _uncertain(estimate)
    if subject.method == "simulate":
        # A CPU's kernels hold other tensors than CUDA's.
        model = subject.steps.model(rank, settings)
        with fake_tensors(cuda=False) as fake:
            give_storage(model, fake)
            peak = trace_step(model, settings, fake).peak()
        estimated, uncertain = peak.bytes, peak.bytes_by_kind["activations"] + peak.bytes_by_kind["temporaries"]
    if estimated > available_bytes():
        raise _no_room(estimated, "this machine")
    device = torch.device("cpu")
    model = subject.steps.model(rank, settings)
    give_storage(model, device)
    measured = trace_step(model, settings, device).peak().bytes
    return Calibration(
        device="cpu",
        rank=rank,
        measured_bytes=measured,
        estimated_bytes=estimated,
        measured_reserved_bytes=None,
        estimated_reserved_bytes=None,
        activations_factor=_factor(measured, estimated, uncertain),
        reserved_factor=measured / estimated,
    )


def _take_two_steps(model: nn.Module, settings: StepSettings, device: torch.device) -> None:
    """The peak of the second is left in the device's counters; the first makes the optimiser's states."""
    give_storage(model, device)
    if settings.checkpointing:
        checkpoint_activations(model)
    optimizer = make_optimizer(
        settings.optimizer, [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    )
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(device)
        step_loss(model, make_batch(model, settings, device), settings).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize(device)


def _forget_workspaces() -> None:
    """Let the step make its own, as it would in a fresh process; torch has no public name for it."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()


def _uncertain(estimate: MemoryEstimate) -> int:
    """Weights, gradients and states are known to the byte."""
    return estimate.memory.activations + estimate.memory.overhead


def _factor(measured: int, estimated: int, uncertain: int) -> float:
    return max(0.0, 1 + (measured - estimated) / uncertain) if uncertain else 1.0


def _no_room(needed: int, device: str) -> UserError:
    return UserError(
        f"calibrate: the step takes about {needed / 1e9:.3g} GB, for which {device} has no room; "
        "calibrate with a smaller batch-size or seq-len"
    )
