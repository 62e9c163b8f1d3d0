"""Weights in few bits, by bitsandbytes: how a model is loaded so, and its weights as they are multiplied with.

Source: Dettmers et al. 2023, arXiv 2305.14314.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from rankwise.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import BitsAndBytesConfig, PreTrainedModel

Quantization: TypeAlias = Literal["none", "nf4", "nf4-double"]


def can_quantize() -> bool:
    """Whether bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def quantization_config(
    how: Literal[Quantization, "int8"], model: PreTrainedModel, kept: Sequence[str], dtype: torch.dtype
) -> BitsAndBytesConfig:
    """What `from_pretrained` is given for a model like this one, which may be without storage.

    The linear layers in `kept` stay as they are, and so do those that transformers keeps: a list of one's own
    would replace its. Raises `UserError` where bitsandbytes is not installed.
    """
    if not can_quantize():
        raise UserError(f"quantize {how} needs bitsandbytes: run pip install 'rankwise[quant]'")
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert

    return BitsAndBytesConfig(
        load_in_4bit=how != "int8",
        load_in_8bit=how == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=how == "nf4-double",
        bnb_4bit_compute_dtype=dtype,
        # Which columns are outliers depends on the activations: none here.
        llm_int8_threshold=0.0,
        llm_int8_skip_modules=[*get_keys_to_not_convert(model), *kept],
    )


def frozen_weight(layer: nn.Module) -> Tensor:
    """A linear layer's weight as it is multiplied with: itself, or unpacked from 4 bits into a new tensor."""
    weight = cast("Tensor", layer.weight)
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return cast("Tensor", cast(Any, dequantize_4bit)(weight.data, state))


def stored_bytes(parameter: Tensor) -> int:
    """What a parameter takes in memory, with the scales that belong to 4 bits."""
    state: Any = getattr(parameter, "quant_state", None)
    tensors = [parameter]
    if state is not None:
        tensors += [state.absmax, state.code]
        if state.state2 is not None:
            tensors += [state.offset, state.state2.absmax, state.state2.code]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
