"""Base models by the names of their cases, and states of trials in which nothing is zero."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer, match_targets
from rankwise.lora.attach import State, attached, initial_state
from rankwise.records import Trial
from tests.models import VOCABULARY, save_model

LABELS = 3
POOLERLESS = "bert without its pooler"


def load_case(case: str, directory: Path) -> BaseModel:
    if case == POOLERLESS:
        save_model(directory, "bert", lambda config: AutoModel.from_config(config, add_pooling_layer=False))
    else:
        save_model(directory, case)
    return load_base(directory, num_labels=LABELS, device="cpu", dtype="float32")


def load_reference(base: BaseModel) -> PreTrainedModel:
    """The same model as transformers loads it for anybody, its missing modules random."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base.name, num_labels=LABELS, attn_implementation="eager"
    )
    model.config.pad_token_id = base.model.config.pad_token_id
    return model.eval()


def targets_of(base: BaseModel, target_modules: Any = "all-linear") -> tuple[LinearLayer, ...]:
    return match_targets(base.model, target_modules, trained=base.trained_modules)


def perturbed(state: State, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def random_state(base: BaseModel, trial: Trial, targets: Sequence[LinearLayer]) -> State:
    """A state in which B is not zero; another for another seed of the trial."""
    return perturbed(initial_state(base, trial, targets), trial.seed)


def some_batch(rows: int = 4) -> dict[str, Tensor]:
    """Rows of different lengths; a decoder takes the last token that is not padding."""
    ids = torch.randint(4, VOCABULARY, (rows, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        ids[row, -row:] = 0
        mask[row, -row:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def repeated(batch: dict[str, Tensor], trials: int) -> dict[str, Tensor]:
    return {key: value.repeat(trials, 1) for key, value in batch.items()}


def logits_of(base: BaseModel, targets: Sequence[LinearLayer], states: Sequence[tuple[Trial, State]]) -> Tensor:
    """(trials, rows, labels) of trials in one pack, in the order of their ranks."""
    batch = some_batch()
    with attached(base, [trial for trial, _ in states], targets) as pack, torch.no_grad():
        for index, (_, state) in enumerate(states):
            pack.load(index, state)
        logits = base.model(**repeated(batch, len(states))).logits
    return logits.view(len(states), len(batch["input_ids"]), -1)
