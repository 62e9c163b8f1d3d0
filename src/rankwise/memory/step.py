"""One training step, the plain loop that trainers run: forward, loss, backward, update, gradients set to None."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rankwise.base.shapes import is_causal
from rankwise.errors import UserError, reason_of
from rankwise.memory.settings import Optimizer, StepSettings

_CHUNK = 1024  # tokens


def make_batch(model: nn.Module, settings: StepSettings, device: torch.device) -> dict[str, Tensor]:
    """Token ids, labels and, where rows are padded, the mask of a full batch."""
    shape = (settings.batch_size, settings.seq_len)
    batch = {"input_ids": torch.ones(shape, dtype=torch.long, device=device)}
    if settings.padded:
        mask = torch.ones(shape, dtype=torch.long, device=device)
        mask[:, -1] = 0
        batch["attention_mask"] = mask
    labels = shape if is_causal(base_of(model).config) else shape[:1]
    return batch | {"labels": torch.ones(labels, dtype=torch.long, device=device)}


def checkpoint_activations(model: nn.Module) -> None:
    """Have the blocks compute again in the backward pass. Raises `UserError` where the model has no way to."""
    try:
        base_of(model).activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"checkpointing: {reason_of(error)}") from error


def make_optimizer(name: Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of that name; its learning rate does not matter here."""
    if name == "adamw-8bit":
        if all(parameter.is_cuda for parameter in parameters):
            from bitsandbytes.optim import AdamW8bit

            return cast(torch.optim.Optimizer, AdamW8bit(parameters))
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


def step_loss(model: nn.Module, batch: dict[str, Tensor], settings: StepSettings) -> Tensor:
    """The loss of a batch. What the model returns is let go before the backward pass, as transformers' Trainer does.

    Raises `UserError` where a layer cannot be called with PEFT's adapter on it.
    """
    device = batch["input_ids"].device.type
    try:
        with torch.autocast("cpu" if device == "meta" else device, torch.bfloat16, enabled=settings.autocast):
            return _loss(model, batch, settings)
    # As a layer that returns more than a product: PEFT meets it when the model calls it, not before.
    except (AttributeError, TypeError, ValueError) as error:
        name = _failing(model, error)
        if name is None:
            raise
        raise UserError(
            f"target modules: with PEFT's adapter on {name} the model cannot be called, {reason_of(error)}: "
            "give target modules without it"
        ) from error


def _failing(model: nn.Module, error: Exception) -> str | None:
    """The adapted layer in which an error arose."""
    names = {id(layer): name for name, layer in base_of(model).named_modules() if hasattr(layer, "lora_A")}
    called = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((names[each] for each in reversed(called) if each in names), None)


def _loss(model: nn.Module, batch: dict[str, Tensor], settings: StepSettings) -> Tensor:
    if not is_causal(base_of(model).config):
        # DeBERTa's own loss selects rows by their labels, which a fake tensor has not.
        labels = batch.pop("labels")
        return functional.cross_entropy(model(**batch).logits, labels)
    if settings.loss == "full":
        return cast(Tensor, model(**batch).loss)
    return _chunked_loss(model, batch)


def _chunked_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    base = base_of(model)
    labels = batch.pop("labels").view(-1)
    hidden = base.base_model(**batch).last_hidden_state.flatten(0, 1)
    head = base.get_output_embeddings()

    def of_chunk(hidden: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(head(hidden).float(), labels, reduction="sum")

    chunks = zip(hidden.split(_CHUNK), labels.split(_CHUNK), strict=True)
    losses = [cast(Tensor, checkpoint(of_chunk, *chunk, use_reentrant=False)) for chunk in chunks]
    return torch.stack(losses).sum() / len(labels)


def base_of(model: nn.Module) -> Any:
    return cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
