"""Which layers a pack can stand in for: those that a model calls, and that compute their weight's product and no more.

A router may return more than a product, and a weight in eight bits may have scales of its own. Of a model that sees and
reads, texts do not come by the layers that see.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.base.model import BaseModel, position_limit, some_ids
from rankwise.base.quantize import is_quantized
from rankwise.base.shapes import LinearLayer
from rankwise.lora.frozen import FrozenLinear

_ROUNDING = 0.02  # of the norm of what leaves the layer, in bfloat16


@torch.no_grad()
def unfit_targets(base: BaseModel, targets: Sequence[LinearLayer]) -> dict[str, str]:
    """Why some of these layers cannot be adapted, by their names; tried on the model itself.

    Layers of one name but for the numbers in it are alike: which of a mixture's experts are called depends on the text.
    """
    unfit: dict[str, str] = {}
    called: set[str] = set()

    def look(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        called.add(_kind(name))
        # bitsandbytes' layers are known, and round activations as well.
        known = type(layer) in (nn.Linear, Conv1D) or is_quantized(layer)
        if len(inputs) != 1:
            unfit[_kind(name)] = "the model calls it in a way of its own"
        elif not known and not _is_product(layer, inputs[0], output):
            unfit[_kind(name)] = f"a {type(layer).__name__} computes more than its weight's product"

    hooks = [
        base.model.get_submodule(target.name).register_forward_hook(partial(look, target.name)) for target in targets
    ]
    try:
        ids = some_ids(base.model, base.tokenizer, 2, min(7, position_limit(base) or 7))
        base.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    idle = {_kind(target.name) for target in targets} - called
    unfit |= dict.fromkeys(idle, "the model does not call it on texts")
    return {target.name: unfit[_kind(target.name)] for target in targets if _kind(target.name) in unfit}


def _is_product(layer: nn.Module, x: Tensor, output: object) -> bool:
    if not isinstance(output, Tensor):
        return False
    try:
        product = FrozenLinear(layer, None)(x.flatten(0, -2))
    except (AttributeError, RuntimeError):  # it has no bias, or its weight is laid out in another way
        return False
    return output.shape[-1:] == product.shape[-1:] and bool(
        (output.flatten(0, -2) - product).norm() <= _ROUNDING * product.norm()
    )


def _kind(name: str) -> str:
    """
    >>> _kind("model.layers.12.mlp.experts.3.up_proj")
    'model.layers.#.mlp.experts.#.up_proj'
    """
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))
