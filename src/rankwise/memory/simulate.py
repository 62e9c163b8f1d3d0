"""The memory of a training step, by taking one on fake tensors: the model's own code, PEFT's own adapters.

The optimiser's states exist before it, as they do from the second step on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from transformers import masking_utils
from transformers.integrations import moe

from rankwise.memory.build import quantization_state
from rankwise.memory.cuda import cuda_kernels
from rankwise.memory.settings import StepSettings
from rankwise.memory.step import checkpoint_activations, make_batch, make_optimizer, step_loss
from rankwise.memory.trace import StorageTracker, Trace


class Unsimulated(Exception):
    """The model's code asks for the values of its tensors, which fake ones do not have."""


def trace_step(model: nn.Module, settings: StepSettings, device: torch.device, *, workspace_bytes: int = 0) -> Trace:
    """One training step of a model that has storage; what requires a gradient is trained.

    `workspace_bytes` are what cuBLAS keeps for a thread.
    """
    tracker = StorageTracker(workspace_bytes)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    tracker.claim([*frozen, *model.buffers(), *quantization_state(model)], "base_weights")
    tracker.claim(trained, "adapter_weights")
    if settings.checkpointing:
        checkpoint_activations(model)
    model.train()
    optimizer = make_optimizer(settings.optimizer, trained)
    with tracker:
        with tracker.phase("update"):
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
        tracker.claim(_states(optimizer), "optimizer_states")
        tracker.trace.begins = len(tracker.trace.events)
        with tracker.phase("forward"):
            batch = make_batch(model, settings, device)
            loss = step_loss(model, batch, settings)
        with tracker.phase("backward"):
            loss.backward()
        tracker.claim((parameter.grad for parameter in trained if parameter.grad is not None), "gradients")
        with tracker.phase("update"):
            optimizer.step()
            optimizer.zero_grad()
    return tracker.so_far()


@contextmanager
def fake_tensors(*, cuda: bool, meta: bool = False) -> Iterator[torch.device]:
    """Within the `with` block tensors have no values; the device to put them on.

    They are fake CPU tensors, or with `meta` meta tensors, which take less than half the time but have no autocast.
    With `cuda` attention and dropout allocate as on a CUDA device.

    Raises `Unsimulated` where the code inside asks for values.
    """
    before = masking_utils.find_packed_sequence_indices, masking_utils.is_tracing, moe._grouped_mm
    # Whether a row holds several sequences, and whether it is padded, is read off values: one sequence, padded.
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    masking_utils.is_tracing = lambda tensor=None: True
    moe._grouped_mm = _grouped_product
    try:
        with nullcontext() if meta else FakeTensorMode(), cuda_kernels() if cuda else nullcontext():
            yield torch.device("meta" if meta else "cpu")
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise Unsimulated(f"the model's code depends on values ({error}) and cannot be simulated") from error
    except (RuntimeError, NotImplementedError) as error:
        # As in "cannot be called on meta tensors"; torch has no error of its own for it.
        if not re.search(r"\bmeta\b", str(error), re.IGNORECASE):
            raise
        reason = str(error).splitlines()[0]
        raise Unsimulated(f"the model's code depends on values ({reason}) and cannot be simulated") from error
    finally:
        masking_utils.find_packed_sequence_indices, masking_utils.is_tracing, moe._grouped_mm = before


_grouped_mm: Callable[[Tensor, Tensor, Tensor], Tensor] = moe._grouped_mm


def _grouped_product(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """The product of a mixture's experts, which torch refuses in other dtypes than bfloat16 without values."""
    if weight.dtype == torch.bfloat16:
        return _grouped_mm(input, weight, offs)
    out: Tensor = _GroupedProduct.apply(input.to(weight.dtype), weight, offs)  # type: ignore[no-untyped-call]
    return out


class _GroupedProduct(torch.autograd.Function):
    # It keeps what a gradient needs. Source: `_grouped_mm` in torch's derivatives.yaml.
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        of_input, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if of_weight else None, weight if of_input else None, offs)
        ctx.shapes = input.shape, weight.shape, offs.shape
        return input.new_empty(len(input), weight.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.shapes, ctx.needs_input_grad, strict=True)
        return tuple(grads[0].new_empty(shape) if needed else None for shape, needed in wanted)


def _states(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
