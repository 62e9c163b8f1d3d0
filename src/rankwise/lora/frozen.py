"""The two products of a frozen linear layer: its outputs, and the gradient of what enters it.

A CPU's bfloat16 products want weights in blocks, and without them lay each weight out anew at every product: a tenth
of a training step. A base model that is multiplied thousands of times has that done once, for both directions, where
the copies are small.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rankwise.base.model import Blocks
from rankwise.base.quantize import frozen_weight

_MOST_BYTES = 2**30  # of all copies together

# oneDNN's products, which torch's compiler calls too; they are not in every build.
_ONEDNN = torch.ops.mkldnn


class FrozenLinear(nn.Module):
    """An nn.Linear, or transformers' Conv1D, of any number of bits. `blocks` are its weight's."""

    def __init__(self, layer: nn.Module, blocks: Blocks | None) -> None:
        super().__init__()
        self.layer = layer
        self._blocks = blocks

    def forward(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        if self._blocks is not None and x.dtype == torch.bfloat16:
            return _product(x, self._blocks.weight, self._bias)
        return functional.linear(x, self._weight(x.dtype), self._bias)

    def input_gradients(self, gradients: Float[Tensor, "rows d_out"]) -> Float[Tensor, "rows d_in"]:
        if self._blocks is not None and gradients.dtype == torch.bfloat16:
            return _product(gradients, self._blocks.transposed, None)
        # A weight in few bits is unpacked again: kept since the forward pass, all would be in memory at once.
        return gradients @ self._weight(gradients.dtype)

    @property
    def _bias(self) -> Tensor | None:
        return cast("Tensor | None", self.layer.bias)

    def _weight(self, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
        return _weight(self.layer, dtype)


def frozen_linears(layers: Sequence[nn.Module], kept: MutableMapping[nn.Module, Blocks]) -> list[FrozenLinear]:
    """Each layer, in blocks where that is worth it; these are `kept` for the next pack."""
    if not worth_blocks(layers):
        return [FrozenLinear(layer, None) for layer in layers]
    for layer in layers:
        if layer not in kept:
            weight = _weight(layer, torch.bfloat16)
            kept[layer] = Blocks(_in_blocks(weight), _in_blocks(weight.t()))
    return [FrozenLinear(layer, kept[layer]) for layer in layers]


def _weight(layer: nn.Module, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
    """As nn.Linear stores it; of few bits a new tensor."""
    weight = frozen_weight(layer, dtype)
    return weight if isinstance(layer, nn.Linear) else weight.t()


def worth_blocks(layers: Sequence[nn.Module]) -> bool:
    """Whether these layers' weights are to be laid out in blocks, on this machine."""
    weights = [cast(Tensor, layer.weight) for layer in layers]
    return (
        hasattr(_ONEDNN, "_linear_pointwise")
        and bool(_ONEDNN._is_mkldnn_bf16_supported())
        and all(weight.dtype == torch.bfloat16 and weight.device.type == "cpu" for weight in weights)
        and 2 * sum(weight.numel() * weight.element_size() for weight in weights) <= _MOST_BYTES
    )


def _in_blocks(weight: Float[Tensor, "d_out d_in"]) -> Tensor:
    blocks: Tensor = _ONEDNN._reorder_linear_weight(weight.detach().contiguous())
    return blocks


def _product(x: Float[Tensor, "rows d_in"], blocks: Tensor, bias: Tensor | None) -> Float[Tensor, "rows d_out"]:
    y: Tensor = _ONEDNN._linear_pointwise(x, blocks, bias, "none", [], "")
    return y
