from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PreTrainedModel, WhisperConfig

from rankwise.base.shapes import head_modules, linear_layers, match_targets, meta_model
from rankwise.errors import UserError
from tests.models import ARCHITECTURES, peft_model, tiny_config

ATTENTION = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "deberta-v2": ["query_proj", "value_proj"],
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
}


def tiny(architecture: str) -> PreTrainedModel:
    return meta_model(tiny_config(architecture))


def adapted_by_peft(architecture: str, target_modules: Any) -> dict[str, tuple[int, int]]:
    adapted = peft_model(tiny(architecture), target_modules=target_modules).get_base_model()
    return {
        name: (module.in_features, module.out_features)
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }


def adapted_by_us(architecture: str, target_modules: Any) -> dict[str, tuple[int, int]]:
    model = tiny(architecture)
    layers = match_targets(model, target_modules, trained=head_modules(model))
    return {layer.name: (layer.d_in, layer.d_out) for layer in layers}


def of_kind(kind: str, architecture: str) -> Any:
    names = ATTENTION[architecture]
    if kind == "whole name":
        return [next(layer.name for layer in linear_layers(tiny(architecture)) if layer.name.endswith(names[-1]))]
    return {
        "all-linear": "all-linear",
        "names": names,
        "regex": rf".*\.1\.(.*\.)?({'|'.join(names)})",
        # The ends of names of the head and the pooler too.
        "dense": ["dense"],
        "a pooler": [{"deberta-v2": "pooler.dense", "modernbert": "head.dense"}.get(architecture)],
    }[kind]


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *((architecture, "all-linear") for architecture in ARCHITECTURES if architecture != "distilbert"),
        *((architecture, kind) for architecture in ARCHITECTURES for kind in ("names", "whole name", "regex")),
        *((architecture, "dense") for architecture in ("bert", "roberta", "deberta-v2", "modernbert")),
        *((architecture, "a pooler") for architecture in ("deberta-v2", "modernbert")),
    ],
)
def test_the_adapted_layers_are_those_of_peft(architecture: str, kind: str) -> None:
    targets = of_kind(kind, architecture)
    assert adapted_by_us(architecture, targets) == adapted_by_peft(architecture, targets)


def test_a_head_that_is_trained_in_full_is_not_adapted_as_well() -> None:
    # PEFT does both to DistilBERT's pre_classifier.
    assert head_modules(tiny("distilbert")) == ("pre_classifier", "classifier")
    assert "pre_classifier" not in adapted_by_us("distilbert", "all-linear")


def test_a_head_of_the_checkpoint_outside_the_backbone_is_adapted_not_trained() -> None:
    assert head_modules(tiny("modernbert")) == ("classifier",)
    assert "head.dense" in adapted_by_us("modernbert", "all-linear")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_heads_are_those_that_peft_trains_in_full(architecture: str) -> None:
    model = peft_model(tiny(architecture), target_modules=ATTENTION[architecture]).get_base_model()
    wrapped = {name.removesuffix(".modules_to_save") for name, _ in model.named_modules() if name.endswith("to_save")}
    assert set(head_modules(tiny(architecture))) == wrapped


@pytest.mark.parametrize(
    ("architecture", "targets", "said"),
    [
        ("bert", ["query", "qurey"], ["'qurey' matches no linear layer", "nearest names are query"]),
        ("bert", ["bert.encoder.layer.0.attention.self.qeury"], ["nearest names are bert.encoder.layer.0"]),
        ("llama", ["query"], ["'query' matches no", "q_proj, k_proj"]),
        ("bert", ["word_embeddings"], ["bert.embeddings.word_embeddings, a Embedding", "only linear"]),
        ("bert", ["attention", "query"], ["bert.encoder.layer.0.attention, a BertAttention"]),
        ("bert", ".*attention.*", ["bert.encoder.layer.0.attention, a BertAttention"]),
        ("roberta", ["out_proj"], ["classifier.out_proj, which is trained in full"]),
        ("bert", ["query", "classifier"], ["classifier, which is trained in full"]),
        ("bert", "query", ["'query' matches no linear layer", "a whole name, such as bert.encoder.layer.0"]),
        ("bert", "(query", ["not a regular expression"]),
        ("bert", [], ["no linear layer"]),
    ],
)
def test_target_names_that_match_nothing_or_the_wrong_thing(architecture: str, targets: Any, said: list[str]) -> None:
    with pytest.raises(UserError) as error:
        adapted_by_us(architecture, targets)
    assert str(error.value).isprintable()
    assert all(part in str(error.value) for part in said), error.value


def test_output_embeddings_are_left_out_of_all_linear() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    names = [layer.name for layer in match_targets(model, "all-linear")]
    assert "lm_head" in [layer.name for layer in linear_layers(model)]
    assert "lm_head" not in names


def test_a_configuration_is_left_as_it_was() -> None:
    config = tiny_config("bert")
    assert meta_model(config, num_labels=5).config.num_labels == 5
    assert config.num_labels == 2


def test_an_architecture_that_cannot_classify_is_refused() -> None:
    with pytest.raises(UserError, match="a whisper model cannot classify sequences"):
        meta_model(WhisperConfig())


def test_a_configuration_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(UserError, match=r"no bert model can be built .* not a multiple"):
        meta_model(tiny_config("bert", num_attention_heads=5))
