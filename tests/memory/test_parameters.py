from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from packaging.version import Version
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    DebertaConfig,
    Glm4MoeConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    T5Config,
)

from rankwise.base.shapes import LinearLayer, meta_model
from rankwise.base.source import EMBEDDED
from rankwise.errors import UserError
from rankwise.memory.estimate import estimate_ranks
from rankwise.memory.parameters import check_ranks, estimate_lora_params
from rankwise.records import ParameterCount
from tests.models import peft_model, save_model, tiny_config

ATTENTION = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "deberta-v2": ["query_proj", "value_proj"],
    "modernbert": ["Wqkv"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
}


@pytest.mark.parametrize("architecture", ATTENTION)
@pytest.mark.parametrize("attention_only", [False, True])
@pytest.mark.parametrize("rank", [1, 8, 13])
def test_the_count_is_what_peft_trains(architecture: str, attention_only: bool, rank: int) -> None:
    targets: Any = ATTENTION[architecture] if attention_only else "all-linear"
    config = tiny_config(architecture)
    peft = peft_model(meta_model(config, num_labels=3), r=rank, target_modules=targets)
    trained = {name: parameter.numel() for name, parameter in peft.named_parameters() if parameter.requires_grad}
    adapters = sum(count for name, count in trained.items() if ".lora_" in name)
    count = estimate_lora_params(config, rank, targets, num_labels=3)
    assert count == ParameterCount(adapters, sum(trained.values()) - adapters)
    assert count.total == peft.get_nb_trainable_parameters()[0]


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (MixtralConfig(**_SMALL, num_key_value_heads=2, num_local_experts=4), {"target_modules": "all-linear"}),
        (
            Qwen3MoeConfig(**_SMALL, num_key_value_heads=2, num_experts=4, moe_intermediate_size=16, head_dim=8),
            {"target_modules": "all-linear"},
        ),
        (
            MixtralConfig(**_SMALL, num_key_value_heads=2, num_local_experts=4),
            {"target_modules": ["q_proj", "w1", "w3"]},
        ),
        # Where some layers are dense, or experts are shared, PEFT renames what it finds by the experts' old names.
        (
            Glm4MoeConfig(
                **{**_SMALL, "num_hidden_layers": 3},
                **{
                    "num_key_value_heads": 2,
                    "n_routed_experts": 4,
                    "num_experts_per_tok": 2,
                    "first_k_dense_replace": 1,
                },
                **{"moe_intermediate_size": 16, "head_dim": 8, "n_group": 1, "topk_group": 1},
            ),
            {"target_modules": "all-linear", "task_type": "CAUSAL_LM"},
        ),
        (
            Qwen3NextConfig(
                **_SMALL,
                **{"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
                **{
                    "head_dim": 8,
                    "shared_expert_intermediate_size": 16,
                    "layer_types": ["linear_attention", "full_attention"],
                },
                **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
                **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
            ),
            {"target_modules": "all-linear", "task_type": "CAUSAL_LM"},
        ),
        # DeBERTa has parameters called q_bias and v_bias.
        pytest.param(
            DebertaConfig(**_SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
            {"target_modules": "all-linear", "bias": "all"},
            marks=pytest.mark.skipif(
                Version(version("peft")) < Version("0.21"), reason="PEFT took such parameters for biases"
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")  # PEFT's own keys
def test_experts_and_biases_count_as_peft_counts_them(config: PreTrainedConfig, options: dict[str, Any]) -> None:
    model = _language_model(config) if "task_type" in options else meta_model(config)
    peft = peft_model(copy.deepcopy(model), r=4, **options)
    options.pop("task_type", None)
    assert estimate_lora_params(model, 4, **options).total == peft.get_nb_trainable_parameters()[0]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # which is what is asked for
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"], ["norm", "lm_head"]])
def test_a_tied_head_that_is_trained_in_full_is_a_copy(saved: list[str]) -> None:
    model = _language_model(tiny_config("llama", tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    count = estimate_lora_params(model, 4, ["q_proj"], modules_to_save=saved)
    peft = peft_model(model, r=4, target_modules=["q_proj"], modules_to_save=saved, task_type="CAUSAL_LM")
    assert count.total == peft.get_nb_trainable_parameters()[0]


def _language_model(config: PreTrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("pattern", ["(query", "(a+)+"])
def test_a_pattern_of_ranks_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match=r"^rank pattern .* cannot be used: "):
        estimate_lora_params(tiny_config("bert"), 4, rank_pattern={pattern: 2})


def test_a_published_figure() -> None:
    # Llama-3.2-3B as its config.json gives it; the count is the one printed by PEFT in runs that were published.
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
    )
    assert estimate_lora_params(config, 64, ["q_proj", "v_proj"]) == ParameterCount(18_350_080, 2 * 3072)


def test_a_name_a_directory_a_configuration_and_a_module_count_alike(tmp_path: Path) -> None:
    config = tiny_config("bert")
    directory = save_model(tmp_path / "model", "bert")
    (directory / "model.safetensors").unlink()
    counts = {estimate_lora_params(model, 4) for model in (config, directory, str(directory), meta_model(config))}
    assert len(counts) == 1
    assert estimate_lora_params(EMBEDDED, 4).adapters == 4 * 6 * (4 * 2 * 384 + 2 * (384 + 1536)) + 4 * 2 * 384


def test_a_module_without_a_head_has_only_adapters() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    assert estimate_lora_params(model, 4).heads == 0
    assert estimate_lora_params(model, 4).adapters == estimate_lora_params(tiny_config("llama"), 4).adapters


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank: int) -> None:
    with pytest.raises(UserError, match=f"rank {rank}: .* at least 1"):
        estimate_lora_params(tiny_config("bert"), rank)


LAYERS = (LinearLayer("wide", 64, 128), LinearLayer("narrow", 64, 16), LinearLayer("square", 64, 64))


def test_ranks_that_every_layer_has_are_accepted_silently() -> None:
    assert check_ranks([1, 16], LAYERS) == ()


def test_a_rank_that_some_layers_lack_is_warned_about() -> None:
    (warning,) = check_ranks([8, 17, 16], LAYERS)
    assert "rank 17 is more than 1 of 3 adapted layers have (narrow: 16)" in warning
    assert len(check_ranks([17, 64], LAYERS)) == 2


def test_a_rank_that_no_layer_has_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="rank 65 is more than any adapted layer has: the largest is 64"):
        check_ranks([8, 65], LAYERS)


@pytest.mark.parametrize("method", ["simulate", "formula"])
@pytest.mark.parametrize("kind", [T5Config, BartConfig])
def test_an_encoder_with_a_decoder_is_refused_whichever_of_them_transformers_could_build(
    kind: type[PreTrainedConfig], method: Literal["simulate", "formula"]
) -> None:
    config = kind(architectures=[f"{kind.__name__.removesuffix('Config')}ForConditionalGeneration"])
    with pytest.raises(UserError, match="has an encoder and a decoder: give a model with one of them"):
        estimate_ranks(config, [8], method=method)
