"""Whether a model keeps the trials of a pack apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rankwise.base.model import BaseModel, position_limit
from rankwise.base.shapes import LinearLayer


def packable(base: BaseModel, targets: Sequence[LinearLayer]) -> bool:
    """Whether every layer that a pack replaces is given the batch on its first axis, or rows of tokens in its order.

    DeBERTa projects its relative positions once for the whole batch, Longformer and XLNet put the
    positions first. There a layer cannot tell whose rows it sees, and a pack must be one trial.
    """
    rows, length = 8, min(7, position_limit(base) or 7)
    shapes: list[torch.Size] = []
    names = [*(target.name for target in targets), *base.trained_modules]
    hooks = [
        base.model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
        for name in names
    ]
    ids = torch.full((rows, length), int(base.tokenizer.pad_token_id == 0), device=base.device)
    try:
        with torch.no_grad():
            base.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    return all(shape[0] == rows or shape[:-1] == (rows * length,) for shape in shapes)
