"""The linear layers of a model, and which of them are adapted.

Names follow PEFT: `all-linear`, a list of names or suffixes, or a regular expression that must
match the whole module name. Two deliberate differences: a name that matches nothing is an error
even beside others that match (PEFT is silent), and so is one that matches a module which is not linear.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LinearLayer:
    """One linear map of the model; transformers' Conv1D (GPT-2) counts as one."""

    name: str
    d_in: int
    d_out: int

    def lora_params(self, rank: int) -> int:
        """Parameters of A (rank, d_in) and B (d_out, rank). Source: Hu et al. 2021, section 4.2."""
        return rank * (self.d_in + self.d_out)


def meta_model(config: PreTrainedConfig, *, num_labels: int = 2, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model for sequence classification without storage: shapes only."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config.num_labels = num_labels
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except ValueError as error:
        raise UserError(f"a {config.model_type} model cannot classify sequences in transformers") from error
    return model


def linear_layers(model: nn.Module) -> tuple[LinearLayer, ...]:
    """Every linear layer in the order of the model's modules."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layers = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            layers.append(LinearLayer(name, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            layers.append(LinearLayer(name, module.nx, module.nf))
    return tuple(layers)


def head_modules(model: PreTrainedModel) -> tuple[str, ...]:
    """Children of a classification model outside its backbone that hold parameters: `classifier`, `score`, `pooler`."""
    return tuple(
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    )


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module is one of `modules` or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def match_targets(
    model: nn.Module, target_modules: str | Sequence[str], *, trained: Sequence[str] = ()
) -> tuple[LinearLayer, ...]:
    """The linear layers that `target_modules` names, in the order of the model's modules.

    Modules in `trained` (trained in full: heads) and the output embeddings are never adapted by
    `all-linear`; naming a trained module is an error.
    """
    layers = linear_layers(model)
    candidates = [layer for layer in layers if not within(layer.name, trained)]
    if isinstance(target_modules, str):
        if target_modules.lower() == ALL_LINEAR:
            output = getattr(model, "get_output_embeddings", lambda: None)()
            chosen = [layer for layer in candidates if output is None or model.get_submodule(layer.name) is not output]
            if not chosen:
                raise UserError("target modules all-linear: the model has no linear layer to adapt")
            return tuple(chosen)
        return _match_pattern(target_modules, candidates)
    chosen_names: set[str] = set()
    for target in target_modules:
        matched = [layer.name for layer in candidates if _matches(layer.name, target)]
        if not matched:
            raise UserError(_no_match(model, target, candidates, trained))
        chosen_names.update(matched)
    return tuple(layer for layer in candidates if layer.name in chosen_names)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _match_pattern(pattern: str, candidates: Sequence[LinearLayer]) -> tuple[LinearLayer, ...]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"target modules {pattern!r}: not a regular expression, {error}") from error
    chosen = tuple(layer for layer in candidates if compiled.fullmatch(layer.name))
    if not chosen:
        example = candidates[0].name if candidates else "none"
        raise UserError(
            f"target modules {pattern!r} match no linear layer (the whole name must match, for example {example})"
        )
    return chosen


def _no_match(model: nn.Module, target: str, candidates: Sequence[LinearLayer], trained: Sequence[str]) -> str:
    elsewhere = [(name, module) for name, module in model.named_modules() if name and _matches(name, target)]
    for name, module in elsewhere:
        if within(name, trained):
            return f"target module {target!r} is {name}, which is trained in full: leave it out of the targets"
        return f"target module {target!r} is {name}, a {type(module).__name__}: only linear layers can be adapted"
    suffixes = sorted({layer.name.rsplit(".", 1)[-1] for layer in candidates})
    near = difflib.get_close_matches(target, suffixes, n=3) or suffixes[:8]
    return f"target module {target!r} matches no linear layer; the nearest names are {', '.join(near)}"
