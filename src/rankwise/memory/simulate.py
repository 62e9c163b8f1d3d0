"""The memory of a training step, by taking one on fake tensors: the model's own code, PEFT's own adapters.

The step is the plain loop that trainers run: forward, loss, backward, update, gradients set to None.
The optimiser's states exist before it, as they do from the second step on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import masking_utils

from rankwise.memory.build import is_causal, quantization_state
from rankwise.memory.cuda import cuda_kernels
from rankwise.memory.settings import Optimizer, StepSettings
from rankwise.memory.trace import StorageTracker, Trace

_CHUNK = 1024  # tokens


class Unsimulated(Exception):
    """The model's code asks for the values of its tensors, which fake ones do not have."""


def trace_step(model: nn.Module, settings: StepSettings, device: torch.device) -> Trace:
    """One training step of a model that has storage; what requires a gradient is trained."""
    tracker = StorageTracker()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    tracker.claim([*frozen, *model.buffers(), *quantization_state(model)], "base_weights")
    tracker.claim(trained, "adapter_weights")
    if settings.checkpointing:
        _base(model).activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = make_optimizer(settings.optimizer, trained)
    with tracker:
        with tracker.phase("update"):
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
        tracker.claim(_states(optimizer), "optimizer_states")
        with tracker.phase("forward"):
            batch = make_batch(model, settings, device)
            loss = _loss(model, batch, settings)
        with tracker.phase("backward"):
            loss.backward()
        tracker.claim((parameter.grad for parameter in trained if parameter.grad is not None), "gradients")
        with tracker.phase("update"):
            optimizer.step()
            optimizer.zero_grad()
    return tracker.trace


@contextmanager
def fake_tensors(*, cuda: bool, meta: bool = False) -> Iterator[torch.device]:
    """Within the `with` block tensors have no values; the device to put them on.

    They are fake CPU tensors, or with `meta` meta tensors, which take less than half the time but have no autocast.
    With `cuda` attention and dropout allocate as on a CUDA device.

    Raises `Unsimulated` where the code inside asks for values.
    """
    before = masking_utils.find_packed_sequence_indices, masking_utils.is_tracing
    # Whether a row holds several sequences, and whether it is padded, is read off values: one sequence, padded.
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    masking_utils.is_tracing = lambda tensor=None: True
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
        masking_utils.find_packed_sequence_indices, masking_utils.is_tracing = before


def make_batch(model: nn.Module, settings: StepSettings, device: torch.device) -> dict[str, Tensor]:
    """Token ids, labels and, where rows are padded, the mask of a full batch."""
    shape = (settings.batch_size, settings.seq_len)
    batch = {"input_ids": torch.ones(shape, dtype=torch.long, device=device)}
    if settings.padded:
        mask = torch.ones(shape, dtype=torch.long, device=device)
        mask[:, -1] = 0
        batch["attention_mask"] = mask
    labels = shape if is_causal(_base(model).config) else shape[:1]
    return batch | {"labels": torch.ones(labels, dtype=torch.long, device=device)}


def make_optimizer(name: Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of that name; its learning rate does not matter here."""
    if name == "adamw-8bit":
        return _AdamWStates(parameters, eight_bits=True)
    if name == "adamw":
        # The fused kernel holds nothing but the states; torch refuses it on meta tensors.
        if all(parameter.is_meta for parameter in parameters):
            return _AdamWStates(parameters, eight_bits=False)
        return torch.optim.AdamW(parameters, fused=True)
    if name == "adamw-foreach":
        return torch.optim.AdamW(parameters, foreach=True)
    if name == "sgd":
        return torch.optim.SGD(parameters, foreach=True)
    from transformers import Adafactor

    # As transformers' Trainer takes it.
    adafactor: torch.optim.Optimizer = Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)
    return adafactor


class _AdamWStates(torch.optim.Optimizer):
    """Holds the states of AdamW, torch's or bitsandbytes' of 8 bits, and moves no parameter.

    torch: two moments like the parameter and a count of steps. 8 bits: two bytes a parameter, and a float32 scale for
    each block of 256 and each state; tensors of fewer than 4096 elements keep float32 states. Source:
    `Optimizer2State.init_state` in bitsandbytes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, eight_bits: bool) -> None:
        super().__init__(parameters, {})
        self.eight_bits = eight_bits

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if state or parameter.grad is None:
                continue
            small = parameter.numel() < 4096
            if not self.eight_bits:
                state["step"] = parameter.new_zeros((), dtype=torch.float32)
            for name in ("state1", "state2"):
                dtype = (torch.float32 if small else torch.uint8) if self.eight_bits else parameter.dtype
                state[name] = torch.zeros_like(parameter, dtype=dtype)
                if self.eight_bits and not small:
                    state[f"scale_{name}"] = parameter.new_zeros(-(-parameter.numel() // 256), dtype=torch.float32)


def _states(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _loss(model: nn.Module, batch: dict[str, Tensor], settings: StepSettings) -> Tensor:
    # What the model returns is let go before the backward pass, as transformers' Trainer does.
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.autocast):
        if not is_causal(_base(model).config):
            # DeBERTa's own loss selects rows by their labels, which a fake tensor has not.
            labels = batch.pop("labels")
            return functional.cross_entropy(model(**batch).logits, labels)
        if settings.loss == "full":
            return cast(Tensor, model(**batch).loss)
        return _chunked_loss(model, batch)


def _chunked_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    base = _base(model)
    labels = batch.pop("labels").view(-1)
    hidden = base.base_model(**batch).last_hidden_state.flatten(0, 1)
    head = base.get_output_embeddings()

    def of_chunk(hidden: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(head(hidden).float(), labels, reduction="sum")

    chunks = zip(hidden.split(_CHUNK), labels.split(_CHUNK), strict=True)
    losses = [cast(Tensor, checkpoint(of_chunk, *chunk, use_reentrant=False)) for chunk in chunks]
    return torch.stack(losses).sum() / len(labels)


def _base(model: nn.Module) -> Any:
    return cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
