"""Adapters that PEFT made, of tiny models, in which nothing is zero."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tests.lora.packs import LABELS, some_batch
from tests.models import load_peft_model, peft_model, save_model, tiny_config


def tiny_model(architecture: str) -> PreTrainedModel:
    """The same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(tiny_config(architecture, num_labels=LABELS))
    return model.eval()


def saved_adapter(directory: Path, architecture: str = "llama", **settings: Any) -> PeftModel:
    """Write an adapter as somebody's training leaves it; returns the model that has it."""
    return saved_adapter_of(tiny_model(architecture), directory, **{"target_modules": "all-linear", "r": 6} | settings)


def saved_adapter_of(base: PreTrainedModel, directory: Path, **settings: Any) -> PeftModel:
    """The same of any model, which is changed in place; the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft_model(base, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
        model.save_pretrained(str(directory))
    return model.eval()


def classifier(directory: Path, architecture: str = "llama", labels: int = 2, **settings: Any) -> Path:
    """A base model in `base`, and an adapter of it in `it`."""
    save_model(directory / "base", architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(directory / "base", num_labels=labels)
    saved_adapter_of(model, directory / "it", **{"target_modules": "all-linear", "r": 6} | settings)
    return directory / "it"


def logits(model: PeftModel) -> Tensor:
    with torch.no_grad():
        return model(**some_batch()).logits


def loaded(directory: Path, architecture: str = "llama") -> PeftModel:
    return load_peft_model(tiny_model(architecture), directory).eval()


def updates(model: PeftModel) -> dict[str, Tensor]:
    """ΔW of every adapted module as PEFT computes it, (outputs, inputs) or, of a Conv1D, the transpose."""
    layers = model.get_base_model().named_modules()
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers if isinstance(layer, LoraLayer)}


def reconfigure(directory: Path, **changed: Any) -> None:
    file = directory / CONFIG_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def settings_in(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((directory / CONFIG_NAME).read_text())
    return settings


def weights_in(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(directory / SAFETENSORS_WEIGHTS_NAME)
    return tensors


def rewrite(directory: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, directory / SAFETENSORS_WEIGHTS_NAME)
