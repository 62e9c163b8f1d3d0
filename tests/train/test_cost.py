from __future__ import annotations

import sys

import pytest
import torch

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import match_targets
from rankwise.records import Trial
from rankwise.tasks.task import PackRows
from rankwise.train.cost import PeakMemory, measure_costs, measure_pack
from rankwise.train.settings import TrainingSettings
from tests.models import save_model
from tests.train.tasks import token_task

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(save_model(tmp_path_factory.mktemp("bert"), "bert"), num_labels=2, dtype="float32", device="cpu")


@linux_only
def test_a_peak_is_seen_after_it_has_passed(base: BaseModel) -> None:
    size = 200_000_000
    meter = PeakMemory(base)
    block = torch.ones(size // 4)
    del block
    peak = meter.bytes()
    assert peak is not None
    # The kernel adds up pages of several threads now and then only.
    assert 0.95 * size <= peak - base.bytes < 1.2 * size


@linux_only
def test_an_earlier_peak_is_forgotten(base: BaseModel) -> None:
    block = torch.ones(100_000_000)
    del block
    peak = PeakMemory(base).bytes()
    assert peak is not None
    assert peak - base.bytes < 20_000_000


def test_every_rank_is_measured_and_the_model_is_as_it_was(base: BaseModel) -> None:
    targets = match_targets(base.model, "all-linear", trained=base.trained_modules)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    trials = [Trial(rank, float(rank), False, 1e-3, 0) for rank in (2, 8, 4)]
    costs = measure_costs(base, token_task(), trials, targets, TrainingSettings(steps=3, batch_size=8))
    assert [cost.rank for cost in costs] == [2, 8, 4]
    assert all(cost.seconds > 0 for cost in costs)
    assert all(cost.peak_bytes is None or cost.peak_bytes >= base.bytes for cost in costs)
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_pack_is_timed_over_its_trials_own_batches(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = 0.0, []

    def step(pack: object, optimizer: object, task: object, batches: list[PackRows], number: int) -> None:
        nonlocal now
        seen.append([rows.shape for rows in batches])
        now += 100.0 if len(seen) == 1 else 0.5

    monkeypatch.setattr("rankwise.train.cost.train_step", step)
    monkeypatch.setattr("rankwise.train.cost.time.perf_counter", lambda: now)
    targets = match_targets(base.model, "all-linear", trained=base.trained_modules)
    trials = [Trial(rank, float(rank), False, 1e-3, seed) for seed, rank in enumerate((2, 8, 4))]
    settings = TrainingSettings(steps=3, batch_size=8, accumulation=2)
    assert measure_pack(base, token_task(), trials, targets, settings) == 0.5
    assert len(seen) > 4
    assert all(shapes == [(3, 8), (3, 8)] for shapes in seen)


def test_the_peak_is_that_of_a_step_beside_the_optimiser_s_states(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step of a trial has no moments yet: 8 bytes of each parameter are missing at its peak."""
    happened: list[str] = []

    class Meter:
        def __init__(self, _: BaseModel) -> None:
            happened.append("new")

        def restart(self) -> None:
            happened.append("restart")

        def bytes(self) -> int:
            happened.append("read")
            return base.bytes

    def step(pack: object, optimizer: object, task: object, batches: list[PackRows], number: int) -> None:
        happened.append(f"{len(batches[0][0])} rows of {int(lengths[batches[0][0]].max())} tokens")

    monkeypatch.setattr("rankwise.train.cost.train_step", step)
    monkeypatch.setattr("rankwise.train.cost.PeakMemory", Meter)
    task = token_task()
    lengths = task.train.input_ids.lengths
    targets = match_targets(base.model, "all-linear", trained=base.trained_modules)
    measure_costs(base, task, [Trial(2, 2.0, False, 1e-3, 0)], targets, TrainingSettings(steps=3, batch_size=8))
    largest = f"8 rows of {int(lengths.max())} tokens"
    assert happened[:5] == ["new", largest, "restart", largest, "read"]
    assert happened.count("read") == happened.count("new") == 3
