"""The linear layers of a model, and which of them are adapted. Live models are read through their outline.

Names follow PEFT: `all-linear`, a list of names or suffixes, or a regular expression that must
match the whole module name. Two deliberate differences: a name that matches nothing is an error
even beside others that match (PEFT is silent), and so is one that matches an embedding or a
convolution (PEFT adapts those too).
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rankwise.base.outline import Outline, OutlinedModule, Sizes
from rankwise.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LinearLayer:
    """One linear map of the model; transformers' Conv1D (GPT-2) counts as one.

    A mixture's experts that share one parameter are one too: `experts` maps of the same shape. PEFT gives
    it `rank_factor` times the rank where the parameter fuses that many projections.
    """

    name: str
    d_in: int
    d_out: int
    experts: int = 1
    rank_factor: int = 1

    @property
    def weights(self) -> int:
        return self.experts * self.d_in * self.d_out

    def lora_params(self, rank: int) -> int:
        """Parameters of each expert's A (rank, d_in) and B (d_out, rank). Source: Hu et al. 2021, section 4.2."""
        return self.experts * self.rank_factor * rank * (self.d_in + self.d_out)


def require_classifier(config: PreTrainedConfig) -> None:
    """Raise `UserError` where transformers has no sequence classification for this architecture."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

    remote = getattr(config, "auto_map", None) or {}
    known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not known and AutoModelForSequenceClassification.__name__ not in remote:
        raise UserError(f"a {config.model_type} model cannot classify sequences in transformers: give another model")
    # BART and T5 pick the last end-of-text token, of which every row must have the same number.
    require_one_stack(config)


def require_one_stack(config: PreTrainedConfig) -> None:
    """Raise `UserError` where the architecture has an encoder and a decoder."""
    if config.is_encoder_decoder:
        raise UserError(f"a {config.model_type} model has an encoder and a decoder: give a model with one of them")


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether the model is fine-tuned as a language model; encoders classify sequences."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    architectures = [name for name in config.architectures or [] if not name.endswith("Model") or "LMHead" in name]
    if architectures:
        return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures)
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and getattr(config, "type_vocab_size", None) is None


def require_causal(config: PreTrainedConfig) -> None:
    """Raise `UserError` where the architecture is no causal language model."""
    remote = getattr(config, "auto_map", None) or {}
    if config.is_encoder_decoder or not (is_causal(config) or "AutoModelForCausalLM" in remote):
        raise UserError(f"a {config.model_type} model is no causal language model: give one, such as a Llama or a Qwen")


def meta_model(config: PreTrainedConfig, *, num_labels: int = 2, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model for sequence classification without storage: shapes only."""
    import torch
    from transformers import AutoModelForSequenceClassification

    require_classifier(config)
    config = copy.deepcopy(config)
    config.num_labels = num_labels
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except ValueError as error:
        raise UserError(f"no {config.model_type} model can be built from its configuration: {error}") from error
    return model


def outline_of(model: nn.Module | Outline) -> Outline:
    """The outline of a live model; an outline as it is."""
    if isinstance(model, Outline):
        return model
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    def linear(module: nn.Module) -> tuple[int, int] | None:
        if isinstance(module, nn.Linear):
            return module.in_features, module.out_features
        return (module.nx, module.nf) if isinstance(module, Conv1D) else None

    first = {name for name, _ in model.named_parameters()}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    modules, output_name = [], None
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        own = {
            key: tuple(parameter.shape)
            for key, parameter in module.named_parameters(recurse=False)
            if prefix + key in first
        }
        modules.append(OutlinedModule(name, type(module).__name__, own, linear(module)))
        if module is output:
            output_name = name
    return Outline(tuple(modules), output_name)


def sizes_of(model: PreTrainedModel) -> Sizes:
    """The sizes that the closed form asks of a live model."""
    text, causal = model.config.get_text_config(), is_causal(model.config)
    groups = getattr(text, "num_hidden_groups", None)  # ALBERT's name for blocks that several layers share
    return Sizes(
        causal=causal,
        hidden_size=getattr(text, "hidden_size", None),
        vocabulary=text.vocab_size if causal else 0,
        positions=model_positions(model),
        heads=getattr(text, "num_attention_heads", None) or 0,
        sdpa=text._attn_implementation != "eager",
        passes=max(1, text.num_hidden_layers // groups) if groups else 1,
    )


def linear_layers(model: nn.Module | Outline) -> tuple[LinearLayer, ...]:
    """Every linear layer in the order of the model's modules."""
    return tuple(LinearLayer(module.name, *module.linear) for module in outline_of(model).modules if module.linear)


def head_modules(model: nn.Module | Outline) -> tuple[str, ...]:
    """The children that PEFT trains in full when a model classifies sequences: `classifier`, `score`.

    PEFT compares the ends of names, so that DistilBERT's `pre_classifier` is one too. Source:
    `PeftModelForSequenceClassification` and `_set_trainable` in peft 0.21.
    """
    outline = outline_of(model)
    with_parameters = {name.partition(".")[0] for name, _ in outline.parameters()}
    return tuple(
        module.name
        for module in outline.modules
        if module.name.endswith(("classifier", "score")) and module.name in with_parameters
    )


def model_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model has positions for; None where nothing limits it."""
    from torch import nn

    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None)]
    for name, module in model.named_modules():
        # RoBERTa and its like count positions from after the padding index.
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module is one of `modules` or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def match_targets(
    model: nn.Module | Outline, target_modules: str | Sequence[str], *, trained: Sequence[str] = ()
) -> tuple[LinearLayer, ...]:
    """The linear layers that `target_modules` names, in the order of the model's modules.

    Modules in `trained` (trained in full: heads) are never adapted, the output embeddings not by
    `all-linear`. Raises `UserError` for a name that matches nothing, or no linear layer.
    """
    outline = outline_of(model)
    layers = {layer.name: layer for layer in linear_layers(outline) if not within(layer.name, trained)}
    if isinstance(target_modules, str) and target_modules.lower() == ALL_LINEAR:
        chosen = {name for name in layers if name != outline.output}
    elif isinstance(target_modules, str):
        chosen = _matched(outline, target_modules, compiled(target_modules), layers, trained)
        if not chosen:
            example = f" (it must match a whole name, such as {next(iter(layers))})" if layers else ""
            raise UserError(f"the regular expression {target_modules!r} matches no linear layer{example}")
    else:
        chosen = set()
        for target in target_modules:
            named = _matched(outline, target, partial(is_named, target=target), layers, trained)
            if not named:
                near = ", ".join(_nearest(target, layers))
                raise UserError(f"target module {target!r} matches no linear layer; the nearest names are {near}")
            chosen |= named
    if not chosen:
        raise UserError(f"target modules {target_modules}: there is no linear layer to adapt")
    return tuple(layer for name, layer in layers.items() if name in chosen)


def is_named(name: str, target: str) -> bool:
    """PEFT's rule for one entry of a list: the whole name, or its end after a dot."""
    return name == target or name.endswith(f".{target}")


def compiled(target: str) -> Callable[[str], object]:
    """Whether a regular expression of targets matches a whole name. Raises `UserError` for what is none."""
    try:
        return re.compile(target).fullmatch
    except re.error as error:
        raise UserError(f"target modules {target!r}: not a regular expression, {error}") from error


def _matched(
    outline: Outline,
    target: str,
    matches: Callable[[str], object],
    layers: Iterable[str],
    trained: Sequence[str],
) -> set[str]:
    matched = [module for module in outline.modules if module.name and matches(module.name)]
    free = [module for module in matched if not within(module.name, trained)]
    for module in free:
        if module.name not in layers:
            raise UserError(
                f"target module {target!r} matches {module.name}, a {module.kind}: only linear layers can be adapted"
            )
    if matched and not free:
        raise UserError(
            f"target module {target!r} is {matched[0].name}, which is trained in full: leave it out of the targets"
        )
    return {module.name for module in free}


def _nearest(target: str, layers: Iterable[str]) -> list[str]:
    known = list(dict.fromkeys(name if "." in target else name.rsplit(".", 1)[-1] for name in layers))
    return difflib.get_close_matches(target, known) or known[:8]
