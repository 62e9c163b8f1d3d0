"""Parameter counts in closed form, from a model's configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.base.shapes import LinearLayer, head_modules, match_targets, meta_model
from rankwise.base.source import load_config
from rankwise.errors import UserError
from rankwise.records import ParameterCount

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


def estimate_lora_params(
    model: str | Path | PreTrainedConfig | nn.Module,
    rank: int,
    target_modules: str | Sequence[str] = "all-linear",
    *,
    num_labels: int = 2,
) -> ParameterCount:
    """What PEFT would train when this model classifies sequences: adapters and heads apart.

    A name, a directory or a configuration needs no weights; `num_labels` sets the size of its head. A
    module is counted as it is. Heads are those that PEFT knows; a module that only a checkpoint
    shows to be missing, such as a pooler, is trained in full as well and is not counted here.

    >>> from transformers import BertConfig
    >>> estimate_lora_params(BertConfig(), 8, ["query", "value"])
    ParameterCount(adapters=294912, heads=1538)
    """
    from torch import nn

    if rank < 1:
        raise UserError(f"rank {rank}: an adapter's rank is at least 1")
    if isinstance(model, str | Path):
        model = load_config(model)
    module = model if isinstance(model, nn.Module) else meta_model(model, num_labels=num_labels)
    heads = head_modules(module)
    layers = match_targets(module, target_modules, trained=heads)
    return ParameterCount(
        adapters=sum(layer.lora_params(rank) for layer in layers),
        heads=sum(parameter.numel() for name in heads for parameter in module.get_submodule(name).parameters()),
    )


def check_ranks(ranks: Sequence[int], layers: Sequence[LinearLayer]) -> tuple[str, ...]:
    """Warnings about ranks that exceed what some adapted layers have: min(d_in, d_out).

    Raises `UserError` for a rank that no layer has.
    """
    full = {layer.name: min(layer.d_in, layer.d_out) for layer in layers}
    warnings = []
    for rank in ranks:
        exceeded = [name for name, most in full.items() if rank > most]
        if len(exceeded) == len(full):
            raise UserError(f"rank {rank} is more than any adapted layer has: the largest is {max(full.values())}")
        if exceeded:
            warnings.append(
                f"rank {rank} is more than {len(exceeded)} of {len(full)} adapted layers have "
                f"({exceeded[0]}: {full[exceeded[0]]}): there its parameters are redundant"
            )
    return tuple(warnings)
