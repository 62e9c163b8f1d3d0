"""The model that a step trains: built from its configuration, quantised, wrapped by PEFT, put on a device.

Everything is built on the meta device, which costs no memory; then its parameters get storage, on
fake tensors or on a real device.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rankwise.base.quantize import Quantization, quantization_config, stored_whole
from rankwise.base.shapes import head_modules, is_causal, match_targets, require_one_stack
from rankwise.errors import UserError, reason_of
from rankwise.memory.settings import StepSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_QUANTIZATION = "rankwise_quantization"  # an attribute of the modules that are quantised
_BLOCK = 64  # weights that share one scale; bitsandbytes' default, as is the next
_DOUBLE_BLOCK = 256  # scales that share one scale of their own


def meta_step_model(config: PreTrainedConfig, settings: StepSettings) -> PreTrainedModel:
    """The base model on the meta device, in the dtype and with the attention of the settings, not yet quantised.

    Raises `UserError` where transformers cannot build it, or would build its decoder alone.
    """
    require_one_stack(config)
    config = copy.deepcopy(config)
    config.use_cache = False
    auto = AutoModelForCausalLM if is_causal(config) else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(
                config,
                dtype=_DTYPES[settings.dtype],
                # transformers' own choice is sdpa where the architecture has it.
                attn_implementation="eager" if settings.attention == "eager" else None,
            )
    except (ValueError, ImportError) as error:
        raise UserError(
            f"no {config.model_type} model can be built from its configuration: {reason_of(error)}"
        ) from error
    model.requires_grad_(False)
    return model


def adapt(model: PreTrainedModel, rank: int, targets: str | Sequence[str], settings: StepSettings) -> nn.Module:
    """The model quantised and with PEFT's adapters on it, in place, still on the meta device."""
    from peft import LoraConfig, get_peft_model

    causal = is_causal(model.config)
    if not causal:
        # PEFT's all-linear would take DistilBERT's pre_classifier, which it trains in full as well.
        targets = [layer.name for layer in match_targets(model, targets, trained=head_modules(model))]
    _quantize(model, settings.quantize)
    lora = LoraConfig(
        r=rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM" if causal else "SEQ_CLS",
    )
    try:
        with _quiet():
            peft: nn.Module = get_peft_model(model, lora, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    except ValueError as error:
        raise UserError(f"PEFT cannot adapt these target modules: {reason_of(error)}") from error
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(_DTYPES[settings.adapter_dtype])
    return peft


def give_storage(model: nn.Module, device: torch.device) -> None:
    """Replace every meta tensor by zeros on `device`; what is tied stays tied.

    Under a fake tensor mode the new ones are fake.
    """
    # A tied parameter is met more than once. The meta tensors are kept, or their ids would be given to others.
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def stored(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[id(tensor)] = tensor, new
        return made[id(tensor)][1]

    for module in model.modules():
        quantization: Quantization = getattr(module, _QUANTIZATION, "none")
        tensors: dict[str, Tensor | None]
        for tensors in (module._parameters, module._buffers):  # type: ignore[assignment]
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_meta:
                    continue
                packed = quantization != "none" and name == "weight"
                tensors[name] = _quantized_weight(module, quantization, device) if packed else stored(tensor)


def _quantize(model: PreTrainedModel, how: Quantization) -> None:
    if how == "none":
        return
    kept = (*(() if is_causal(model.config) else head_modules(model)), *stored_whole(model.config))
    config = quantization_config(how, model, kept, model.dtype)
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    replace_with_bnb_linear(model, modules_to_not_convert=config.llm_int8_skip_modules, quantization_config=config)
    for module in model.modules():
        if hasattr(module, "source_cls"):
            setattr(module, _QUANTIZATION, how)
            if module.bias is not None:
                module.bias.data = cast(Tensor, module.bias).data.to(model.dtype)
    holder = cast(Any, model)
    holder.is_loaded_in_4bit, holder.is_loaded_in_8bit = config.load_in_4bit, config.load_in_8bit


def _quantized_weight(module: nn.Module, how: Quantization, device: torch.device) -> nn.Parameter:
    """What bitsandbytes stores for a weight: packed values, and a scale for every block of them."""
    from bitsandbytes import functional

    quant_state_of = cast(Any, functional.QuantState)  # it has no annotations

    linear = cast(Any, module)
    rows, columns = linear.out_features, linear.in_features
    if how == "int8":
        weight = nn.Parameter(torch.zeros(rows, columns, dtype=torch.int8, device=device), requires_grad=False)
        linear.state.CB, linear.state.SCB = weight.data, torch.zeros(rows, device=device)
        cast(Any, weight).CB = None
        return weight
    numel = rows * columns
    blocks = -(-numel // _BLOCK)
    packed = torch.zeros(-(-numel // 2), 1, dtype=torch.uint8, device=device)
    weight = nn.Parameter(packed, requires_grad=False)
    code = torch.zeros(16, device=device)
    state: dict[str, Any] = {
        "shape": torch.Size((rows, columns)),
        "dtype": linear.compute_dtype,
        "blocksize": _BLOCK,
        "quant_type": "nf4",
        "code": code,
    }
    if how == "nf4-double":
        inner = quant_state_of(
            absmax=torch.zeros(-(-blocks // _DOUBLE_BLOCK), device=device),
            blocksize=_DOUBLE_BLOCK,
            code=torch.zeros(256, device=device),
            dtype=torch.float32,
        )
        absmax = torch.zeros(blocks, dtype=torch.uint8, device=device)
        quant_state = quant_state_of(absmax=absmax, offset=torch.zeros((), device=device), state2=inner, **state)
    else:
        quant_state = quant_state_of(absmax=torch.zeros(blocks, device=device), **state)
    cast(Any, weight).quant_state = quant_state
    return weight


def quantization_state(model: nn.Module) -> Iterator[Tensor]:
    """The scales and codes that belong to quantised weights and are neither parameters nor buffers."""
    for module in model.modules():
        if getattr(module, _QUANTIZATION, None) is None:
            continue
        linear = cast(Any, module)
        if hasattr(linear.weight, "quant_state"):
            state = linear.weight.quant_state
            nested = [] if state.state2 is None else [state.offset, state.state2.absmax, state.state2.code]
            yield from (state.absmax, state.code, *nested)
        else:
            yield from (linear.state.CB, linear.state.SCB)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
