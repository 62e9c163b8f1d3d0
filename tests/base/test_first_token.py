"""The last layer for the first token alone: the same logits and gradients as transformers' whole layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.models.bert import modeling_bert

from rankwise.base.first_token import compute_first_token_only_if_alike, computes_first_token_only
from rankwise.base.load import load_base
from tests.lora.packs import LABELS, load_case, load_reference, some_batch
from tests.models import save_model


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_logits_and_gradients_are_those_of_the_whole_layer(architecture: str, tmp_path: Path) -> None:
    base = load_case(architecture, tmp_path)
    layer = base.model.base_model.encoder.layer[-1]
    assert computes_first_token_only(base.model)
    assert type(layer).__name__ == {"bert": "FirstTokenBertLayer", "roberta": "FirstTokenRobertaLayer"}[architecture]
    plain = load_reference(base)
    batch = some_batch()
    found = []
    for model in (base.model, plain):
        model.load_state_dict(base.model.state_dict())
        weights = model.get_parameter(f"{architecture}.encoder.layer.1.attention.self.key.weight")
        weights.requires_grad_(True)
        embeddings = model.get_input_embeddings().weight.requires_grad_(True)
        logits = model(**batch).logits
        logits.square().sum().backward()
        found.append((logits.detach(), weights.grad, embeddings.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_layer_computes_one_token(tmp_path: Path) -> None:
    base = load_case("bert", tmp_path)
    shapes = []
    for name in ("query", "key"):
        module = base.model.get_submodule(f"bert.encoder.layer.1.attention.self.{name}")
        module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    base.model(**some_batch())
    assert shapes == [(4, 1, 32), (4, 12, 32)]


@pytest.mark.parametrize("architecture", ["distilbert", "deberta-v2", "llama"])
def test_other_architectures_are_left_alone(architecture: str, tmp_path: Path) -> None:
    base = load_case(architecture, tmp_path)
    assert not computes_first_token_only(base.model)
    plain = load_reference(base)
    plain.load_state_dict(base.model.state_dict())
    torch.testing.assert_close(base.model(**some_batch()).logits, plain(**some_batch()).logits)


def test_a_head_that_reads_all_tokens_keeps_the_whole_layer(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "bert")
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=LABELS).eval()
    model.base_model.pooler.register_forward_pre_hook(lambda _, inputs: (inputs[0].mean(dim=1, keepdim=True),))
    before = model(**some_batch()).logits
    compute_first_token_only_if_alike(model)
    assert not computes_first_token_only(model)
    assert torch.equal(model(**some_batch()).logits, before)


def test_a_cross_attention_that_cannot_be_called_so_keeps_the_whole_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*arguments: object, **options: object) -> None:
        raise TypeError("another signature")

    monkeypatch.setattr(modeling_bert.BertCrossAttention, "forward", refuses)
    base = load_case("bert", tmp_path)
    assert not computes_first_token_only(base.model)
    plain = load_reference(base)
    plain.load_state_dict(base.model.state_dict())
    torch.testing.assert_close(base.model(**some_batch()).logits, plain(**some_batch()).logits)


def test_a_fresh_head_of_whatever_values_has_no_say(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "bert")
    model = AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=LABELS, dtype=torch.bfloat16
    ).eval()
    with torch.no_grad():
        ids, mask = torch.arange(4).view(2, 2), torch.tensor([[1, 1], [1, 0]])
        pooled = model.base_model(input_ids=ids, attention_mask=mask).pooler_output.float()
        head = model.classifier.weight
        # What it makes of the tokens that are tried is rounding, and another rounding is far from that.
        head.copy_(head.float() - head.float() @ torch.linalg.pinv(pooled) @ pooled)
    compute_first_token_only_if_alike(model)
    assert computes_first_token_only(model)


def test_a_layer_that_returns_more_than_a_tensor_is_left_alone(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "bert")
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=LABELS).eval()
    encoder = model.base_model.encoder
    encoder.layer[-1].register_forward_hook(lambda _, inputs, output: (output,))
    encoder.register_forward_hook(lambda _, inputs, output: replace(output, last_hidden_state=output[0][0]))
    compute_first_token_only_if_alike(model)
    assert not computes_first_token_only(model)


def test_a_model_in_bfloat16_too(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "bert", AutoModel.from_config)
    base = load_base(directory, num_labels=2, dtype="bfloat16", device="cpu")
    assert computes_first_token_only(base.model)
