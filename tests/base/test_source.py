from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import WhisperConfig

from rankwise.base import source
from rankwise.base.load import load_base
from rankwise.base.source import EMBEDDED, EMBEDDED_HUB_ID, load_config, locate
from rankwise.errors import UserError
from tests.models import save_model, tiny_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", "bert")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_EMBEDDED_PACKAGE", "a_package_that_nobody_installs")


def refusal(model: Path | str) -> str:
    with pytest.raises(UserError) as error:
        load_base(model, num_labels=2, device="cpu", dtype="float32")
    assert str(error.value).isprintable()
    return str(error.value)


def reconfigure(directory: Path, **changed: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def pickle_the_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def forget_the_pad_token(directory: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.unk_token = None
    tokenizer.save_pretrained(directory)


def forget_the_tokenizer(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda it: (it / "config.json").unlink(), ["not a model directory", "no config.json"]),
        (lambda it: (it / "config.json").write_text("hello"), ["config.json of model", "not a valid JSON"]),
        (lambda it: (it / "config.json").write_text("[1]"), ["config.json of model"]),
        (lambda it: (it / "config.json").write_text("{}"), ["config.json of model", "model_type"]),
        (lambda it: reconfigure(it, hidden_size="many"), ["config.json of model", "hidden_size", "got str"]),
        (lambda it: reconfigure(it, num_attention_heads=5), ["not a multiple of the number of attention heads"]),
        (lambda it: reconfigure(it, hidden_size=64), ["lack", "modules of its layers", "another architecture"]),
        (lambda it: reconfigure(it, vocab_size=99), ["word_embeddings (Embedding)", "only linear layers"]),
        (lambda it: reconfigure(it, num_hidden_layers=3), ["bert.encoder.layer.2", "another architecture"]),
        (lambda it: WhisperConfig().save_pretrained(it), ["whisper model cannot classify sequences"]),
        (lambda it: (it / "model.safetensors").unlink(), ["no weights", "model.safetensors is needed"]),
        (pickle_the_weights, ["only pickled weights, which can run code", "convert them to safetensors"]),
        (lambda it: cut(it / "model.safetensors"), ["weights of model", "SafetensorError"]),
        (lambda it: (it / "model.safetensors").write_bytes(b""), ["weights of model", "SafetensorError"]),
        (lambda it: (it / "model.safetensors").rename(it / "other.safetensors"), ["no file named model.safetensors"]),
        # transformers makes up an empty tokenizer, for which every text is the same.
        (forget_the_tokenizer, ["no tokenizer", "tokenizer.json"]),
        (lambda it: (it / "tokenizer.json").unlink(), ["tokenizer of model"]),
        (lambda it: (it / "tokenizer.json").write_text("{"), ["tokenizer of model"]),
        (lambda it: (it / "tokenizer.json").write_text("{}"), ["tokenizer of model", "KeyError"]),
        (forget_the_pad_token, ["no pad, end-of-text or unknown token"]),
        (lambda it: (it / "adapter_config.json").write_text("{}"), ["an adapter, not a base model"]),
    ],
)
def test_a_damaged_model_directory_is_explained_in_one_line(
    damage: Callable[[Path], object], said: list[str], model: Path
) -> None:
    damage(model)
    message = refusal(model)
    assert str(model) in message or "whisper" in message
    assert all(part in message for part in said), message


@pytest.mark.parametrize("architecture", ["roberta", "gpt2", "deberta-v2", "qwen3"])
def test_no_architecture_gets_an_empty_tokenizer(architecture: str, tmp_path: Path) -> None:
    forget_the_tokenizer(save_model(tmp_path, architecture))
    assert "has no tokenizer" in refusal(tmp_path)


def test_code_of_a_model_is_not_run_unasked(model: Path) -> None:
    (model / "mine.py").write_text("raise SystemExit('was run')")
    reconfigure(model, model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    assert "--trust-remote-code" in refusal(model)


@pytest.mark.parametrize("name", ["./missing", "/no/such/directory", "~/no-such-directory", "a/b/c"])
def test_a_path_that_is_no_directory_is_not_sought_on_the_hub(name: str) -> None:
    with pytest.raises(UserError, match="not a model directory"):
        locate(name)


@pytest.mark.usefixtures("offline")
def test_a_hub_model_that_cannot_be_fetched_is_explained_in_one_line() -> None:
    message = refusal("somebody/some-model")
    assert "somebody/some-model is no directory here" in message
    assert "couldn't connect" in message


@pytest.mark.usefixtures("offline", "not_installed")
def test_without_package_and_hub_the_embedded_model_names_two_ways_out() -> None:
    with pytest.raises(UserError) as error:
        load_config(EMBEDDED)
    assert "pip install 'rankwise[offline]'" in str(error.value)
    assert "--model DIRECTORY" in str(error.value)


@pytest.mark.usefixtures("not_installed")
def test_without_its_package_the_embedded_model_comes_from_the_hub() -> None:
    assert locate(EMBEDDED) == EMBEDDED_HUB_ID


def test_the_embedded_model_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "damaged_package"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(source, "_EMBEDDED_PACKAGE", package.name)
    with pytest.raises(UserError, match=r"damaged, .*model\.safetensors is missing"):
        locate(EMBEDDED)
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="has sha256"):
        locate(EMBEDDED)


def test_the_embedded_model_loads_with_its_real_weights() -> None:
    base = load_base(EMBEDDED, num_labels=2, device="cpu", dtype="float32")
    assert sum(parameter.numel() for parameter in base.model.base_model.parameters()) == 22_713_216
    assert base.trained_modules == ("classifier",)
    assert base.revision.startswith("sha256:")
