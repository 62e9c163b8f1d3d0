"""Full fine-tuning against a plain loop over transformers' own model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rankwise.base.load import load_base
from rankwise.lora.attach import initial_heads
from rankwise.records import Trial
from rankwise.tasks.task import Batch, collate
from rankwise.train.checkpoint import CheckpointPace
from rankwise.train.full import FineTuned, fine_tune
from rankwise.train.settings import TrainingSettings
from tests.compare.runs import KilledError
from tests.models import save_model
from tests.train.peft_loop import plain_loop
from tests.train.tasks import token_task
from tests.train.test_language_models import completion_task

SETTINGS = TrainingSettings(steps=20, batch_size=8, evaluations=2)
TRIAL = Trial(1, 1.0, False, 3e-3, 1)


def labels_of(batch: Batch) -> Tensor:
    assert batch.learned is not None
    labels = torch.full_like(batch.input_ids, -100)
    rows, columns = batch.learned.rows, batch.learned.columns
    labels[rows, columns] = batch.input_ids[rows, columns]
    return labels


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_a_language_model_follows_the_plain_loop(architecture: str, tmp_path: Path) -> None:
    directory = save_model(tmp_path, architecture, AutoModelForCausalLM.from_config)
    task = completion_task()
    base = load_base(directory, num_labels=None, dtype="float32", device="cpu")
    tuned = fine_tune(base, task, TRIAL.learning_rate, TRIAL.seed, SETTINGS)

    def loss_of(model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = model(**batch.inputs, labels=labels_of(batch)).loss
        return loss

    plain = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").train()
    expected = plain_loop(plain, list(plain.parameters()), task, TRIAL, SETTINGS, loss_of)
    np.testing.assert_allclose(tuned.train_nll, expected, rtol=1e-4)
    assert tuned.params == sum(parameter.numel() for parameter in plain.parameters())
    with torch.no_grad():
        batch = collate(task.test, np.array([0]), task.pad_token_id)
        nll = plain(**batch.inputs, labels=labels_of(batch)).loss.item()
    assert tuned.test.nll[0, 0] == pytest.approx(nll, rel=1e-3)


def test_a_classifier_follows_the_plain_loop_and_starts_with_the_heads_of_its_seed(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "bert")
    task = token_task()
    base = load_base(directory, num_labels=2, dtype="float32", device="cpu")
    tuned = fine_tune(base, task, TRIAL.learning_rate, TRIAL.seed, SETTINGS)
    plain = AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager").train()
    for name, value in initial_heads(base, TRIAL.seed).items():
        plain.get_parameter(name).data.copy_(value)

    def loss_of(model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = model(**batch.inputs, labels=batch.labels).loss
        return loss

    expected = plain_loop(plain, list(plain.parameters()), task, TRIAL, SETTINGS, loss_of)
    np.testing.assert_allclose(tuned.train_nll, expected, rtol=1e-4)


def test_the_base_model_is_left_as_it_is(tmp_path: Path) -> None:
    base = load_base(save_model(tmp_path, "llama", AutoModelForCausalLM.from_config), num_labels=None, device="cpu")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    fine_tune(base, completion_task(), 1e-2, 0, SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_a_base_in_bfloat16_is_trained_in_float32(tmp_path: Path) -> None:
    """Steps too small for bfloat16 weights must not be lost."""
    directory = save_model(tmp_path, "llama", AutoModelForCausalLM.from_config)
    curves = [
        fine_tune(
            load_base(directory, num_labels=None, dtype=dtype, device="cpu"), completion_task(), 1e-4, 0, SETTINGS
        ).train_nll
        for dtype in ("float32", "bfloat16")
    ]
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-2)
    assert curves[1][-1] < curves[1][0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fine_tuning_that_is_killed_goes_on_to_the_same_numbers(
    dtype: Literal["float32", "bfloat16"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointPace, "due", lambda self: True)
    directory = save_model(tmp_path, "llama", AutoModelForCausalLM.from_config)
    task, checkpoint = completion_task(), tmp_path / "states" / "checkpoint.safetensors"
    steps: list[int] = []

    def told(step: int) -> None:
        steps.append(step)
        if step == 13 and len(steps) == 13:
            raise KilledError

    def tuned(checkpoint: Path | None) -> FineTuned:
        base = load_base(directory, num_labels=None, dtype=dtype, device="cpu")
        return fine_tune(base, task, TRIAL.learning_rate, TRIAL.seed, SETTINGS, told, checkpoint)

    with pytest.raises(KilledError):
        tuned(checkpoint)
    again = tuned(checkpoint)
    assert steps == list(range(1, 21))
    whole = tuned(None)
    assert again.train_nll == whole.train_nll
    assert again.evaluations == whole.evaluations
    np.testing.assert_array_equal(again.test.nll, whole.test.nll)


def test_a_rate_far_too_high_diverges(tmp_path: Path) -> None:
    base = load_base(save_model(tmp_path, "llama", AutoModelForCausalLM.from_config), num_labels=None, device="cpu")
    assert fine_tune(base, completion_task(), 1e6, 0, SETTINGS).status == "diverged"
