from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel, position_limit
from tests.models import save_model, tiny_tokenizer


def load(model: Path | str, **changed: Any) -> BaseModel:
    return load_base(model, **({"num_labels": 2, "dtype": "float32", "device": "cpu"} | changed))


def complete(architecture: str) -> Callable[[PreTrainedConfig], Any]:
    """What builds a checkpoint that lacks the classification head only."""
    return AutoModelForMaskedLM.from_config if architecture == "modernbert" else AutoModel.from_config


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_model(tmp_path / "bert", "bert")


def batch(base: BaseModel) -> dict[str, torch.Tensor]:
    texts = ["ab c", "a longer text, of which the other row is padded", ""]
    return dict(base.tokenizer(texts, padding=True, return_tensors="pt"))


DROPOUTS = {
    **dict.fromkeys(("bert", "roberta"), ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")),
    "deberta-v2": ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout"),
    "distilbert": ("dropout", "attention_dropout", "seq_classif_dropout"),
    "modernbert": ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    **dict.fromkeys(("llama", "qwen3"), ("attention_dropout",)),
}


@pytest.mark.parametrize(("architecture", "dropout"), [(name, each) for name in DROPOUTS for each in DROPOUTS[name]])
def test_a_loaded_model_is_frozen_in_training_mode_and_without_dropout(
    architecture: str, dropout: str, tmp_path: Path
) -> None:
    directory = save_model(tmp_path, architecture, complete(architecture), **{dropout: 0.5})
    base = load(directory)
    assert base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert getattr(base.model.config, dropout) == 0
    trained = base.model(**batch(base)).logits
    assert torch.equal(trained, base.model.eval()(**batch(base)).logits)
    untouched = AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager").train()
    assert not torch.equal(*(untouched(**batch(base)).logits for _ in range(2))), "this dropout would not have shown"


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [
        ("bert", ("classifier",)),
        ("roberta", ("classifier.dense", "classifier.out_proj")),
        ("deberta-v2", ("pooler.dense", "classifier")),
        ("distilbert", ("pre_classifier", "classifier")),
        ("modernbert", ("classifier",)),
        ("gpt2", ("score",)),
        ("llama", ("score",)),
        ("qwen3", ("score",)),
    ],
)
def test_what_the_checkpoint_lacks_is_trained(architecture: str, heads: tuple[str, ...], tmp_path: Path) -> None:
    base = load(save_model(tmp_path, architecture, complete(architecture)))
    assert base.trained_modules == heads
    assert base.fresh_modules == set(heads)


def test_a_pooler_that_the_checkpoint_lacks_is_trained(tmp_path: Path) -> None:
    base = load(save_model(tmp_path, "bert", lambda config: AutoModel.from_config(config, add_pooling_layer=False)))
    assert base.trained_modules == ("bert.pooler.dense", "classifier")
    assert base.fresh_modules == {"bert.pooler.dense", "classifier"}


def test_heads_in_the_checkpoint_are_trained_from_there_and_poolers_in_it_stay_frozen(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "deberta-v2", AutoModelForSequenceClassification.from_config)
    saved = load_file(directory / "model.safetensors")
    base = load(directory)
    assert base.trained_modules == ("classifier",)
    assert base.fresh_modules == frozenset()
    assert torch.equal(base.model.classifier.weight, saved["classifier.weight"])
    assert load(directory, num_labels=5).fresh_modules == {"classifier"}


def test_sharded_weights_load_as_one_file_does(tmp_path: Path) -> None:
    whole = load(save_model(tmp_path / "whole", "bert"))
    directory = tmp_path / "sharded"
    whole.model.base_model.save_pretrained(directory, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(directory)
    assert len(list(directory.glob("*.safetensors"))) > 1
    sharded = load(directory)
    for name, parameter in whole.model.base_model.named_parameters():
        assert torch.equal(parameter, sharded.model.base_model.get_parameter(name))


def test_the_revision_changes_with_the_weights_alone(bert: Path) -> None:
    before = load(bert).revision
    (bert / "README.md").write_text("a note")
    assert load(bert).revision == before
    weights = load_file(bert / "model.safetensors")
    weights["pooler.dense.bias"][0] += 1
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    assert load(bert).revision != before


def test_bfloat16_is_loaded_as_asked(bert: Path) -> None:
    wide, narrow = load(bert), load(bert, dtype="bfloat16")
    assert narrow.dtype == "bfloat16"
    assert 2 * narrow.bytes == wide.bytes


def test_a_decoder_without_a_pad_token_pads_with_its_end_of_text(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "llama", pad_token_id=None)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(directory)
    base = load(directory)
    assert base.tokenizer.pad_token_id == base.model.config.pad_token_id == tokenizer.eos_token_id
    alone = base.model(**base.tokenizer("ab c", return_tensors="pt")).logits
    assert torch.allclose(base.model(**batch(base)).logits[:1], alone, atol=1e-5)


def test_positions_that_the_model_has(tmp_path: Path) -> None:
    assert position_limit(load(save_model(tmp_path / "bert", "bert"))) == 64
    assert position_limit(load(save_model(tmp_path / "gpt2", "gpt2"))) == 64
    base = load(save_model(tmp_path / "roberta", "roberta"))
    # RoBERTa's first position is the one after the padding index, which is 0 here.
    assert position_limit(base) == 63
    base.model(torch.full((1, 63), 5))
    with pytest.raises(RuntimeError, match="out of bounds"):
        base.model(torch.full((1, 64), 5))


def test_a_head_that_the_checkpoint_lacks_is_the_same_each_time(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "bert", AutoModel.from_config)
    state = torch.get_rng_state()
    first, second = (load_base(directory, num_labels=2, dtype="float32", device="cpu").model for _ in range(2))
    torch.testing.assert_close(dict(first.named_parameters()), dict(second.named_parameters()), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
