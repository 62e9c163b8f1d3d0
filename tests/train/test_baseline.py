from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
import transformers
from torch.nn import functional

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.lora.attach import attached
from rankwise.records import Trial
from rankwise.tasks.task import collate
from rankwise.train.baseline import _features, _Head, fit_baseline, head_chain
from rankwise.train.likelihood import likelihood
from tests.models import ARCHITECTURES, save_model
from tests.train.tasks import token_task


def loaded(directory: Path, labels: int = 2) -> BaseModel:
    return load_base(directory, num_labels=labels, dtype="float32", device="cpu")


def as_language_model(config: transformers.PreTrainedConfig) -> torch.nn.Module:
    return transformers.AutoModelForMaskedLM.from_config(config)


def check_head(base: BaseModel) -> None:
    """The head found on cached features is the head that a pack at its start (B = 0) computes with."""
    task = token_task()
    chain = head_chain(base, task)
    features = _features(base, chain, task.test, pad_token_id=0)
    with torch.no_grad():
        logits = _Head(base, chain, 7, torch.ones(features.shape[1]))(features)
    labels = torch.from_numpy(task.test.labels)
    with attached(base, [Trial(2, 2.0, False, 1e-3, seed=7)], ()), torch.no_grad():
        expected = likelihood(base, collate(task.test, np.arange(len(task.test)), pad_token_id=0))
    torch.testing.assert_close(functional.cross_entropy(logits, labels, reduction="none"), expected.nll)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_features_and_head_are_the_model_without_adapters(architecture: str, tmp_path: Path) -> None:
    # ModernBERT's head comes with its language model, and a layer norm in it cannot be trained beside an adapter.
    build = as_language_model if architecture == "modernbert" else transformers.AutoModel.from_config
    check_head(loaded(save_model(tmp_path, architecture, build)))


def test_a_pooler_that_the_checkpoint_lacks_is_part_of_the_head(tmp_path: Path) -> None:
    base = loaded(save_model(tmp_path, "bert", as_language_model))
    assert base.trained_modules == ("bert.pooler.dense", "classifier")
    check_head(base)


def test_the_head_is_fitted_to_convergence(tmp_path: Path) -> None:
    """An undertrained head would turn whatever a rank brings into a gain."""
    base = loaded(save_model(tmp_path, "gpt2"), labels=3)
    task = token_task(train=400, held_out=400, labels=3)
    # With validation equal to train nothing but the training loss itself stops the fit.
    same = dataclasses.replace(task, validation=task.train, test=task.train)
    fitted = fit_baseline(base, same, seed=0)
    x = _features(base, head_chain(base, task), task.train, pad_token_id=0).double().numpy()
    x /= x.std(axis=0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ weights.reshape(3, -1).T
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        rows = np.arange(len(x))
        onehot = np.eye(3)[task.train.labels]
        return -np.log(p[rows, task.train.labels]).mean(), ((p - onehot).T @ x / len(x)).ravel()

    best = scipy.optimize.minimize(loss, np.zeros(3 * x.shape[1]), jac=True, method="BFGS").fun
    assert best < 0.8  # three classes at chance are 1.1
    assert fitted.test.predicted is not None
    assert fitted.test.nll.mean() == pytest.approx(best, rel=0.01)
    right = fitted.test.predicted[0] == same.test.labels
    assert right.mean() > 0.6
    assert (fitted.test.correct[0] == right).all()
    assert fitted.validation.nll == pytest.approx(float(fitted.test.nll.mean()))
    assert fitted.validation.accuracy == right.mean()


def test_a_head_that_only_memorises_is_stopped_by_validation(tmp_path: Path) -> None:
    base = loaded(save_model(tmp_path, "bert"))
    task = token_task(train=20, held_out=400)
    noise = np.random.default_rng(0).integers(0, 2, 400)
    task.validation.labels[:], task.test.labels[:] = noise, noise[::-1]
    assert fit_baseline(base, task, seed=0).test.nll.mean() < 0.75


def test_a_head_that_is_sure_of_itself_learns_that_there_is_nothing_to_know(tmp_path: Path) -> None:
    """Its first step overshoots by far; a gain over a fit that stood still would be everybody's."""

    def sure(config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        model.classifier.weight.data.mul_(300)
        return model

    base = loaded(save_model(tmp_path, "bert", sure))
    task = token_task(train=400, held_out=400)
    generator = np.random.default_rng(0)
    for split in (task.train, task.validation, task.test):
        split.labels[:] = generator.integers(0, 2, len(split))
    assert fit_baseline(base, task, seed=0).test.nll.mean() == pytest.approx(np.log(2), abs=0.01)


def test_the_base_model_is_as_it_was(tmp_path: Path) -> None:
    base = loaded(save_model(tmp_path, "llama"))
    before = {name: id(module) for name, module in base.model.named_modules()}
    fit_baseline(base, token_task(), seed=0)
    assert {name: id(module) for name, module in base.model.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.model.modules())
