"""Tiny base models with random weights and a tokenizer of characters, saved as a model directory is; PEFT on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,:()_"
VOCABULARY = len(_SPECIAL) + len(_LETTERS)
_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_DECODER: dict[str, Any] = _ENCODER | {"num_key_value_heads": 2, "head_dim": 8}
_SIZES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "albert": _ENCODER | {"embedding_size": 16},
    "roberta": _ENCODER | {"pad_token_id": 0},
    "deberta-v2": _ENCODER
    | {
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": 16,
        "pooler_hidden_size": 32,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    "modernbert": _ENCODER | dict.fromkeys(("cls_token_id", "bos_token_id", "eos_token_id", "sep_token_id"), 1),
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1},
    "llama": _DECODER,
    "qwen3": _DECODER,
    "mistral": _DECODER,
    "gemma2": _DECODER | {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "granite": _DECODER | {"logits_scaling": 8.0},
    "cohere": _DECODER | {"eos_token_id": 1, "bos_token_id": 1},
    "mixtral": _DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "jamba": _DECODER
    | {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"num_experts": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
        "use_mamba_kernels": False,
    },
    "glm4_moe": _DECODER
    | {
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "longformer": _ENCODER | {"attention_window": 4},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
}
LANGUAGE_MODELS = ("gpt2", "llama", "qwen3", "mistral", "gemma2")
ARCHITECTURES = ("bert", "roberta", "deberta-v2", "distilbert", "modernbert", "gpt2", "llama", "qwen3")


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '.' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tiny_config(architecture: str, **changed: Any) -> PreTrainedConfig:
    """A configuration of two small layers; decoders have grouped-query attention where theirs can."""
    sizes = {"vocab_size": VOCABULARY, "pad_token_id": 0} | _SIZES[architecture] | changed
    return transformers.CONFIG_MAPPING[architecture](**sizes)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *_LETTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save_model(
    directory: Path,
    architecture: str,
    build: Callable[[PreTrainedConfig], PreTrainedModel] = transformers.AutoModel.from_config,
    **changed: Any,
) -> Path:
    """Write a model directory. `build` decides what the checkpoint holds: by default no head."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build(tiny_config(architecture, **changed))
        # An untrained model's biases are all 0 and its norms all 1: an error in them would not show.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def peft_model(model: PreTrainedModel, **settings: Any) -> PeftModel:
    """What PEFT makes of a model, one that classifies unless the settings say so: the oracle. Changed in place."""
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    with _without_deprecations(), torch.device(model.device):
        return get_peft_model(model, LoraConfig(**{"task_type": "SEQ_CLS", "fan_in_fan_out": transposed} | settings))


def load_peft_model(model: PreTrainedModel, directory: Path, *, trainable: bool = False) -> PeftModel:
    """What PEFT makes of a classification model and a saved adapter. The model is changed in place."""
    with _without_deprecations():
        return PeftModel.from_pretrained(model, str(directory), is_trainable=trainable)


@contextmanager
def _without_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
