"""A probe names a planted rank or its neighbour, leaves the model as it is, and says the same again."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from benchmarks.validity.plants import Sizes, frozen_transformer, headless, planted_task
from benchmarks.validity.plants import targets_of as taught
from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.prepare import Prepared
from rankwise.errors import RunError, UserError
from rankwise.lora.packable import packable
from rankwise.records import RankProbe
from rankwise.report.markdown import markdown_of
from rankwise.report.probe import probe_sheet
from rankwise.spectrum import probe as probe_module
from rankwise.spectrum.probe import probe
from rankwise.tasks.task import Task
from rankwise.train.settings import TrainingSettings
from tests.lora.packs import LABELS, load_case, some_batch, targets_of
from tests.models import peft_model, tiny_config
from tests.train.tasks import token_task


def prepared(
    base: BaseModel, task: Task, targets: tuple[LinearLayer, ...], *, packs: bool | None = None, **options: Any
) -> Prepared:
    # Of the configuration only what says how to train is read: there is nothing to load.
    config = ComparisonConfig(task="docmatch", **{"batch_size": 8} | options)
    settings = TrainingSettings(steps=100, batch_size=config.batch_size)
    together = packable(base, targets) if packs is None else packs
    return Prepared(config, base, task, targets, settings, together, config.target_modules)


def probed(ready: Prepared, *, examples: int = 64, params: int | None = None) -> RankProbe:
    return probe(ready, examples=examples, params=params, observe=lambda text, share=None: None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_STEPS", 8)
    monkeypatch.setattr(probe_module, "_POINTS", (0, 4))


@pytest.fixture(scope="module", params=["bert", "deberta-v2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("rank", [2, 4, 8, 16])
def test_a_planted_rank_or_its_neighbour_is_named(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_POINTS", ())
    base = headless(frozen_transformer(seed=0))
    task = planted_task(base, rank, Sizes(train=1024, validation=2, test=2), seed=0)
    ready = prepared(base, task, taught(base), packs=True, batch_size=16, learning_rates=[0.01])
    found = probed(ready, examples=1024)
    assert found.rank in (rank // 2, rank, 2 * rank)
    assert found.rank in found.ranks
    assert found.update.confirmed > 0.2
    assert not found.update.by_chance


def test_where_nothing_can_be_learned_the_rank_is_said_to_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_POINTS", ())
    base = headless(frozen_transformer(seed=0))
    task = planted_task(base, 0, Sizes(train=1024, validation=2, test=2), seed=0)
    ready = prepared(base, task, taught(base), packs=True, batch_size=16, learning_rates=[0.01])
    found = probed(ready, examples=1024)
    assert found.update.by_chance
    assert "no more than by chance" in markdown_of([probe_sheet(found)])


@pytest.mark.usefixtures("quick")
def test_the_model_is_left_as_it_is_and_a_second_probe_says_the_same(base: BaseModel) -> None:
    task, targets = token_task(labels=LABELS), targets_of(base)
    weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    with torch.no_grad():
        logits = base.model(**some_batch()).logits
    ready = prepared(base, task, targets, learning_rates=[1e-2])
    one, again = (probed(ready, examples=32) for _ in range(2))
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(base.model(**some_batch()).logits, logits)
    same = {"seconds": 0.0, "peak_memory_bytes": None}
    assert dataclasses.replace(one, **same) == dataclasses.replace(again, **same)
    other = probed(prepared(base, task, targets, learning_rates=[1e-2], first_seed=5), examples=32)
    assert other.update.overall != one.update.overall


@pytest.mark.usefixtures("quick")
def test_the_record_holds_together(base: BaseModel) -> None:
    task, targets = token_task(labels=LABELS), targets_of(base)
    found = probed(prepared(base, task, targets, batch_size=24), examples=90)
    assert found.examples == 48  # two full batches of 24; a third would belong to no half
    assert [point.step for point in found.gradients] == [0, 4]
    for point in (found.update, *found.gradients):
        assert [module.name for module in point.modules] == [target.name for target in targets]
        assert sum(kind.modules for kind in point.kinds) == point.overall.modules == len(targets)
        assert 0 <= point.confirmed <= 1 + 1e-6
        for spectrum in (point.overall, *point.kinds, *point.modules):
            assert spectrum.rank_90 <= spectrum.rank_95 < len(spectrum.energy)
    assert math.log2(found.rank).is_integer()
    assert max(found.ranks) <= max(min(target.d_in, target.d_out) for target in targets)
    counts = np.bincount(task.train.labels)
    shares = counts / counts.sum()
    assert found.capacity_bits == pytest.approx(96 * -(shares * np.log2(shares)).sum())
    assert found.pattern is None
    shown = markdown_of([probe_sheet(found)])
    assert "Look around rank" in shown
    assert "hint" in shown


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scaling", ["alpha/rank", "rslora"])
def test_peft_builds_a_model_from_the_pattern(scaling: str, tmp_path: Path) -> None:
    base = load_case("bert", tmp_path)
    targets = targets_of(base)
    params = 3 * sum(target.lora_params(1) for target in targets)
    options = {"scalings": [scaling], "alpha": "2rank", "learning_rates": [1e-2]}
    pattern = probed(prepared(base, token_task(labels=LABELS), targets, **options), params=params).pattern
    assert pattern is not None
    assert len(set(pattern.rank_pattern.values()) | {pattern.r}) > 1
    adapted = peft_model(
        type(base.model)(tiny_config("bert")),
        r=pattern.r,
        lora_alpha=pattern.lora_alpha,
        use_rslora=pattern.use_rslora,
        rank_pattern=pattern.rank_pattern,
        alpha_pattern=pattern.alpha_pattern,
        target_modules=[target.name for target in targets],
    )
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == len(targets)
    scalings = [layer.scaling["default"] for layer in layers]
    assert scalings == pytest.approx([scalings[0]] * len(layers))
    sizes = [layer.lora_A["default"].weight.numel() + layer.lora_B["default"].weight.numel() for layer in layers]
    assert sum(sizes) == pattern.params <= params


@pytest.mark.usefixtures("quick")
def test_a_warm_up_that_diverges_is_told(base: BaseModel) -> None:
    ready = prepared(base, token_task(labels=LABELS), targets_of(base), learning_rates=[1e30])
    with pytest.raises(RunError, match=r"diverged at step \d with learning rate 1e\+30: give a lower one"):
        probed(ready)


@pytest.mark.parametrize(
    ("examples", "params", "said"),
    [(15, None, "examples: 15 make no two batches of 8"), (64, 10, "params: rank 1 everywhere takes")],
)
def test_too_little_is_refused(base: BaseModel, examples: int, params: int | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        probed(prepared(base, token_task(labels=LABELS), targets_of(base)), examples=examples, params=params)
