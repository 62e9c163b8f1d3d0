"""Sketched gradients against autograd's gradient of the weights themselves, at the start and at a trained point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.quantize import frozen_weight
from rankwise.base.shapes import LinearLayer
from rankwise.lora.attach import initial_state
from rankwise.records import Trial
from rankwise.spectrum.gradients import RandomMatrices, Warmed, sketched_gradients
from rankwise.tasks.task import Task, collate
from rankwise.train.likelihood import likelihood
from rankwise.train.settings import TrainingSettings
from tests.lora.packs import LABELS, load_case, random_state, targets_of
from tests.models import save_model
from tests.train.tasks import token_task
from tests.train.test_language_models import completion_task

HALVES = ([np.arange(8), np.arange(8, 16)], [np.arange(16, 24)])


def loaded(case: str, directory: Path) -> tuple[BaseModel, Task]:
    if case != "llama that writes":
        return load_case(case, directory), token_task(labels=LABELS)
    save_model(directory, "llama", transformers.AutoModelForCausalLM.from_config)
    return load_base(directory, num_labels=None, device="cpu", dtype="float32"), completion_task()


def dense_gradients(
    base: BaseModel, task: Task, targets: tuple[LinearLayer, ...], warmed: Warmed, half: list[np.ndarray]
) -> dict[str, Tensor]:
    """The adapter merged into the weights, and the gradient of the mean loss with respect to these."""
    for target in targets:
        a, b = (warmed.state[f"{target.name}.lora_{factor}.weight"] for factor in "AB")
        weight = base.model.get_submodule(target.name).weight
        weight.data += warmed.trial.scaling * b @ a
        weight.requires_grad_()
    for name in base.trained_modules:
        head = {key: warmed.state[f"{name}.{key}"] for key in base.model.get_submodule(name).state_dict()}
        base.model.get_submodule(name).load_state_dict(head)
    for rows in half:
        batch = collate(task.train, rows, task.pad_token_id)
        (likelihood(base, batch).nll.sum() / batch.outcomes_by_row.sum() / len(half)).backward()
    return {target.name: base.model.get_submodule(target.name).weight.grad for target in targets}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("case", ["bert", "llama that writes", "deberta-v2"])
def test_sketches_are_of_the_gradient_that_autograd_gives_the_weights(case: str, trained: bool, tmp_path: Path) -> None:
    base, task = loaded(case, tmp_path)
    targets = targets_of(base)
    trial = Trial(4, 6.0, False, 0.0, seed=1)
    warmed = Warmed(trial, (random_state if trained else initial_state)(base, trial, targets))
    largest = max(min(target.d_in, target.d_out) for target in targets)
    matrices = RandomMatrices.drawn(targets, largest, seed=0)
    settings = TrainingSettings(steps=1)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    sketches = sketched_gradients(base, task, targets, warmed, matrices, HALVES, settings, packed=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    expected = dense_gradients(base, task, targets, warmed, list(HALVES[0]))
    for name, gradient in expected.items():
        svd = sketches[0][name]
        found = (svd.u * svd.values @ svd.vt).float()
        assert float(gradient.norm()) > 0
        assert float((found - gradient).norm() / gradient.norm()) < 1e-3, name
        assert float((sketches[1][name].values - svd.values).norm()) > 0


def test_over_a_base_in_4_bits_they_are_of_the_weights_that_these_stand_for(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    directory = save_model(tmp_path, "bert", hidden_size=64, intermediate_size=128)
    quantised, plain = (
        load_base(directory, num_labels=LABELS, device="cpu", dtype="float32", quantize=how) for how in ("nf4", "none")
    )
    task, targets = token_task(labels=LABELS), targets_of(plain)
    trial = Trial(4, 6.0, False, 0.0, seed=1)
    warmed = Warmed(trial, random_state(plain, trial, targets))
    matrices = RandomMatrices.drawn(targets, 64, seed=0)
    sketches = sketched_gradients(
        quantised, task, targets, warmed, matrices, HALVES, TrainingSettings(steps=1), packed=True
    )
    for target in targets:
        stored = frozen_weight(quantised.model.get_submodule(target.name), torch.float32)
        plain.model.get_submodule(target.name).weight.data.copy_(stored)
    for name, gradient in dense_gradients(plain, task, targets, warmed, list(HALVES[0])).items():
        svd = sketches[0][name]
        found = (svd.u * svd.values @ svd.vt).float()
        assert float((found - gradient).norm() / gradient.norm()) < 1e-3, name


def test_random_matrices_are_those_of_the_seed() -> None:
    targets = [LinearLayer("q", 8, 6), LinearLayer("v", 8, 6)]
    one, same, other = (RandomMatrices.drawn(targets, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(one.omega["q"], same.omega["q"])
    assert torch.equal(one.psi["v"], same.psi["v"])
    assert not torch.equal(one.omega["q"], other.omega["q"])
    assert not torch.equal(one.omega["q"], one.omega["v"])
