"""Weights in few bits, by bitsandbytes: how a model is loaded so, and its weights as they are multiplied with.

Sources: Dettmers et al. 2023, arXiv 2305.14314 (nf4); 2022, arXiv 2208.07339 (int8). In int8 the weights alone are
rounded, not the activations: what is compared is what ranks bring over such weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from rankwise.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

Quantization: TypeAlias = Literal["none", "nf4", "nf4-double", "int8"]


def can_quantize() -> bool:
    """Whether bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def stored_quantization(name: str | Path, config: PreTrainedConfig) -> Quantization:
    """How the weights of a checkpoint are stored, by its configuration.

    Raises `UserError` where that is neither bitsandbytes' nf4 nor its int8: other layers compute in ways of their own.
    """
    how = _stated(config)
    if not how:
        return "none"
    method = str(how.get("quant_method", "bitsandbytes"))
    if method.startswith("bitsandbytes"):
        if not can_quantize():
            raise UserError(f"the weights of {name} are quantised: run pip install 'rankwise[quant]'")
        if how.get("load_in_8bit"):
            return "int8"
        if how.get("bnb_4bit_quant_type") == "nf4":
            return "nf4-double" if how.get("bnb_4bit_use_double_quant") else "nf4"
        method += f" {how.get('bnb_4bit_quant_type')}"
    raise UserError(f"the weights of {name} are quantised by {method}: give the model as it was before, or in nf4")


def stored_whole(config: PreTrainedConfig) -> tuple[str, ...]:
    """The modules that a quantised checkpoint left as they were, as its configuration names them."""
    listed = _stated(config).get("llm_int8_skip_modules")
    return tuple(str(name) for name in listed) if isinstance(listed, list | tuple) else ()


def _stated(config: PreTrainedConfig) -> Mapping[str, Any]:
    stated = getattr(config, "quantization_config", None) or {}
    if isinstance(stated, Mapping):
        return stated
    # The field is the user's, and may be anything.
    how: Mapping[str, Any] = stated.to_dict() if hasattr(stated, "to_dict") else {"quant_method": stated}
    return how


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Have a checkpoint that is quantised already compute in this dtype: transformers leaves it as it was stored."""
    for parameter in model.parameters():
        # Packed weights may be stored as numbers that they are not.
        if parameter.is_floating_point() and getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.to(dtype)
    for layer in model.modules():
        if hasattr(layer, "compute_dtype"):
            cast(Any, layer).compute_dtype = dtype


def quantization_config(
    how: Quantization, model: PreTrainedModel, kept: Sequence[str], dtype: torch.dtype
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


def frozen_weight(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """A linear layer's weight as it is multiplied with: itself, or unpacked into a new tensor."""
    weight = cast("Tensor", layer.weight)
    state, scales = getattr(weight, "quant_state", None), _scales(layer)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        weight = cast(Any, dequantize_4bit)(weight.data, state)
    elif scales is not None:
        from bitsandbytes.functional import int8_vectorwise_dequant

        weight = cast(Any, int8_vectorwise_dequant)(weight.data, scales)
    return weight.to(dtype)


def is_quantized(layer: nn.Module) -> bool:
    """Whether bitsandbytes keeps this layer's weight in few bits."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None or _scales(layer) is not None


def stored_bytes(model: nn.Module) -> int:
    """What a model's weights take in memory, with the scales that belong to those in few bits."""
    tensors: list[Tensor] = list(model.parameters())
    for parameter in model.parameters():
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code]
            if state.state2 is not None:
                tensors += [state.offset, state.state2.absmax, state.state2.code]
    tensors += [scales for layer in model.modules() if (scales := _scales(layer)) is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _scales(layer: nn.Module) -> Tensor | None:
    """The scale of each row of a layer in int8. bitsandbytes moves them from the weight when the layer first runs."""
    of_weight = getattr(getattr(layer, "weight", None), "SCB", None)
    return of_weight if of_weight is not None else getattr(getattr(layer, "state", None), "SCB", None)
