"""Parameter counts in closed form, from a model's configuration alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rankwise.base.outline import Outline
from rankwise.base.shapes import (
    ALL_LINEAR,
    LinearLayer,
    compiled,
    head_modules,
    is_named,
    match_targets,
    meta_model,
    outline_of,
    within,
)
from rankwise.base.source import find_config
from rankwise.errors import UserError, reason_of
from rankwise.memory.settings import DTYPE_BYTES, StepSettings
from rankwise.patterns import check_pattern
from rankwise.records import ParameterCount

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn
    from transformers import PreTrainedConfig

# Of these architectures PEFT refuses `out_proj`, which fused kernels take without its adapter. Source:
# `_check_lora_target_modules_mamba` in peft 0.21.
_MAMBAS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}


def estimate_lora_params(
    model: str | Path | PreTrainedConfig | nn.Module,
    rank: int,
    target_modules: str | Sequence[str] = "all-linear",
    *,
    num_labels: int = 2,
    bias: Literal["none", "all", "lora_only"] = "none",
    use_dora: bool = False,
    modules_to_save: Sequence[str] = (),
    rank_pattern: Mapping[str, int] | None = None,
) -> ParameterCount:
    """What PEFT would train: the adapters' parameters, and those of what is trained in full, heads and biases.

    A name, a directory, a `config.json` or a configuration needs no weights, and stands for the model
    that classifies sequences, `num_labels` being the size of its head; a module is counted as it is. The keywords
    are those of PEFT's `LoraConfig`. Heads are those that PEFT knows; a module that only a checkpoint
    shows to be missing, such as a pooler, is trained in full as well and is not counted here.

    >>> from transformers import BertConfig
    >>> estimate_lora_params(BertConfig(), 8, ["query", "value"])
    ParameterCount(adapters=294912, heads=1538)
    """
    from torch import nn

    if rank < 1:
        raise UserError(f"rank {rank}: an adapter's rank is at least 1")
    for pattern in rank_pattern or ():
        try:
            check_pattern(pattern)
        except ValueError as error:
            raise UserError(f"rank pattern {pattern!r} cannot be used: {error}") from error
    if isinstance(model, str | Path):
        model = find_config(model)
    module = model if isinstance(model, nn.Module) else meta_model(model, num_labels=num_labels)
    outline = outline_of(module)
    saved = (*head_modules(outline), *_saved_modules(outline, modules_to_save))
    layers = adapted_layers(module, target_modules, trained=saved)
    check_adaptable(module, layers)
    adapters = sum(
        layer.lora_params(_rank_of(layer, rank, rank_pattern or {})) + (layer.d_out if use_dora else 0)
        for layer in layers
    )
    adapted = {layer.name for layer in layers}
    # PEFT trains a copy of each module, of weights that are tied as well.
    copied = sum(
        parameter.numel()
        for name in set(saved)
        if not within(name, set(saved) - {name})
        for parameter in module.get_submodule(name).parameters()
    )
    biases = sum(
        math.prod(shape)
        for name, shape in outline.parameters()
        if is_named(name, "bias")
        and not within(name, saved)
        and (bias == "all" or (bias == "lora_only" and name.rpartition(".")[0] in adapted))
    )
    return ParameterCount(adapters=adapters, heads=copied + biases)


def adapted_layers(
    model: nn.Module | Outline, target_modules: str | Sequence[str], *, trained: Sequence[str] = ()
) -> tuple[LinearLayer, ...]:
    """The linear maps that PEFT puts adapters on: linear layers, and the experts of a mixture of experts.

    transformers 5 keeps experts as one parameter of three axes, and PEFT turns the names that its older
    checkpoints had (and `all-linear`) into such parameters: an adapter for each expert, with twice the rank where one
    parameter fuses two of the old ones. An outline stands for a model without experts.
    """
    parameters = () if isinstance(model, Outline) else tuple(_adapted_parameters(model, target_modules))
    if isinstance(model, Outline) or not parameters:
        return match_targets(model, target_modules, trained=trained)
    # Dense and shared layers by the names that experts had, PEFT renames or drops.
    rest = _converted(model, target_modules).target_modules
    if _is_all_linear(target_modules):
        every = match_targets(model, target_modules, trained=trained)
        return (*(layer for layer in every if any(is_named(layer.name, name) for name in rest)), *parameters)
    return (*match_targets(model, sorted(rest), trained=trained), *parameters) if rest else parameters


def check_adaptable(model: nn.Module, layers: Sequence[LinearLayer]) -> None:
    """Raise `UserError` where PEFT refuses one of these layers."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    refused = [layer.name for layer in layers if kind in _MAMBAS and is_named(layer.name, "out_proj")]
    if refused:
        raise UserError(
            f"target modules: PEFT adapts no out_proj of a {kind} model, such as {refused[0]}: "
            "give target modules without it"
        )


def check_ranks(ranks: Sequence[int], layers: Sequence[LinearLayer]) -> tuple[str, ...]:
    """Warnings about ranks that exceed what some adapted layers have: min(d_in, d_out).

    Raises `UserError` for a rank that no layer has.
    """
    full = {layer.name: min(layer.d_in, layer.d_out) for layer in layers}
    warnings = []
    for rank in ranks:
        if rank < 1:
            raise UserError(f"rank {rank}: an adapter's rank is at least 1")
        exceeded = [name for name, most in full.items() if rank > most]
        if len(exceeded) == len(full):
            raise UserError(f"rank {rank} is more than any adapted layer has: the largest is {max(full.values())}")
        if exceeded:
            warnings.append(
                f"rank {rank} is more than {len(exceeded)} of {len(full)} adapted layers have "
                f"({exceeded[0]}: {full[exceeded[0]]}): there its parameters are redundant"
            )
    return tuple(warnings)


def _saved_modules(outline: Outline, modules_to_save: Sequence[str]) -> Iterator[str]:
    for wanted in modules_to_save:
        # PEFT compares the ends of names: `norm` is `input_layernorm`, too. Source: `_set_trainable` in peft 0.21.
        named = [module.name for module in outline.modules if module.name.endswith(wanted)]
        if not named:
            raise UserError(f"module to save {wanted!r} is no module of the model")
        yield from named


def _is_all_linear(target_modules: str | Sequence[str]) -> bool:
    return isinstance(target_modules, str) and target_modules.lower() == ALL_LINEAR


def _rank_of(layer: LinearLayer, rank: int, rank_pattern: Mapping[str, int]) -> int:
    """PEFT's rule: the first pattern that a module's name ends with, as a regular expression."""
    for pattern, other in rank_pattern.items():
        if re.match(rf"(.*\.)?({pattern})$", layer.name):
            return other
    return rank


def _converted(module: nn.Module, target_modules: str | Sequence[str]) -> LoraConfig:
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(r=1, target_modules=target_modules if isinstance(target_modules, str) else list(target_modules))
    try:
        convert_peft_config_for_transformers(config, module, None)
    except ValueError as error:
        raise UserError(f"target modules {target_modules}: {reason_of(error)}") from error
    return config


def _adapted_parameters(module: nn.Module, target_modules: str | Sequence[str]) -> Iterator[LinearLayer]:
    # Importing PEFT takes seconds, and only a mixture of experts needs its rules.
    if not any(parameter.ndim == 3 for parameter in module.parameters()):
        return
    if isinstance(target_modules, str) and not _is_all_linear(target_modules):
        compiled(target_modules)  # PEFT would not say what is wrong
    config = _converted(module, target_modules)
    for name, parameter in module.named_parameters():
        if any(name == target or name.endswith(f".{target}") for target in config.target_parameters or ()):
            d_out, d_in = parameter.shape[-2:]
            layer = LinearLayer(name, d_in, d_out, experts=parameter.shape[0] if parameter.ndim == 3 else 1)
            yield replace(layer, rank_factor=_rank_of(layer, 1, config.rank_pattern))


def capacity_floor(learned_tokens: int, adapted: Sequence[LinearLayer]) -> int:
    """The smallest rank whose adapter could hold what a training set may have to tell: a rule of thumb, and a poor one.

    One bit a learned token, two bits a parameter. Source: Schulman et al. 2025, "LoRA Without Regret".

    >>> capacity_floor(1_000_000, [LinearLayer("q_proj", 3072, 3072)])
    82
    """
    return max(1, math.ceil(learned_tokens / (2 * sum(layer.lora_params(1) for layer in adapted))))


def adapter_file_bytes(
    outline: Outline, adapted: Sequence[LinearLayer], heads: Sequence[str], rank: int, settings: StepSettings
) -> int:
    """The size of PEFT's adapter_model.safetensors: its header and its tensors.

    Source of the layout: the safetensors format, 8 bytes and a header in JSON padded to a multiple of 8. Exact for
    linear layers; of experts PEFT nests the names, which makes a few bytes.
    """
    in_full = [(name, shape) for name, shape in outline.parameters() if within(name, heads)]
    factors = [
        entry
        for layer in adapted
        for entry in (
            (f"{layer.name}.lora_A.weight", (layer.experts * layer.rank_factor * rank, layer.d_in)),
            (f"{layer.name}.lora_B.weight", (layer.d_out, layer.experts * layer.rank_factor * rank)),
        )
    ]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The widest type comes first, then the names in order.
    typed = [(settings.adapter_dtype, *entry) for entry in factors] + [(settings.dtype, *entry) for entry in in_full]
    for dtype, name, shape in sorted(typed, key=lambda entry: (-DTYPE_BYTES[entry[0]], entry[1])):
        begin, end = end, end + DTYPE_BYTES[dtype] * math.prod(shape)
        code = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
        header[f"base_model.model.{name}"] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + end
