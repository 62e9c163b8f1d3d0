"""Whether a model keeps the trials of a pack apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rankwise.base.model import BaseModel, position_limit, some_ids, without
from rankwise.base.shapes import LinearLayer
from rankwise.lora.positions import shares_positions

_ROUNDING = 0.02  # of the norm of what enters the head's last layer, in bfloat16


def packable(base: BaseModel, targets: Sequence[LinearLayer]) -> bool:
    """Whether layers can tell the trials' rows apart, and how far rows are padded does not matter.

    The first DeBERTa projects its relative positions once for the whole batch, Longformer and XLNet put the
    positions first. There a layer cannot tell whose rows it sees. Other models mix padding in,
    without a mask, and a trial's rows are padded to the longest of its pack. There a pack must be one trial.
    """
    return _is_given_rows(base, targets) and _is_blind_to_padding(base)


@torch.no_grad()
def _is_blind_to_padding(base: BaseModel) -> bool:
    """The last layer of a head is taken out: its few outputs, drawn at random, may happen to be next to nothing."""
    length = min(7, (position_limit(base) or 14) // 2)
    row = some_ids(base.model, base.tokenizer, 1, length)

    def outputs(padding: int) -> Tensor:
        ids = pad(row, (0, padding), value=base.tokenizer.pad_token_id or 0)
        mask = pad(torch.ones_like(row), (0, padding))
        found: Tensor = base.model(input_ids=ids, attention_mask=mask).logits.float()
        return found[:, :length] if base.causal else found

    with without(base.model, base.trained_modules[-1:]):
        alone = outputs(0)
        return bool((outputs(length) - alone).norm() <= _ROUNDING * alone.norm())


def _is_given_rows(base: BaseModel, targets: Sequence[LinearLayer]) -> bool:
    """Whether every layer that a pack replaces is given the batch on its first axis, or rows of tokens in its order.

    Or what is shared, where that is known of the module around it.
    """
    rows, length = 8, min(7, position_limit(base) or 7)
    given: list[bool] = []

    def look(shared: bool, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shape = inputs[0].shape
        given.append(shape[0] == rows or shape[:-1] == (rows * length,) or (shared and shape[0] == 1))

    hooks = []
    for name in (*(target.name for target in targets), *base.trained_modules):
        shared = shares_positions(base.model.get_submodule(name.rpartition(".")[0]))
        hooks.append(base.model.get_submodule(name).register_forward_pre_hook(partial(look, shared)))
    ids = some_ids(base.model, base.tokenizer, rows, length)
    try:
        with torch.no_grad():
            base.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    return all(given)
