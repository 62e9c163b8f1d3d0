from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch.nn import functional

from rankwise.base.load import DtypeChoice, load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer, match_targets
from rankwise.errors import RunError
from rankwise.lora.attach import attached, initial_state
from rankwise.records import Evaluation, Trial
from rankwise.tasks.task import Batch, Task, collate
from rankwise.train import loop
from rankwise.train.checkpoint import CheckpointPace, PackProgress, split_checkpoint
from rankwise.train.likelihood import likelihood
from rankwise.train.loop import (
    PackOptimizer,
    StepReport,
    TrainedTrial,
    _trained,
    backward,
    checkpointed_activations,
    run_pack,
    score,
    train_step,
)
from rankwise.train.settings import TrainingSettings
from tests.lora.packs import perturbed
from tests.models import peft_model, save_model
from tests.train.peft_loop import plain_peft_loop
from tests.train.tasks import token_task

SHAPES = ("bert", "llama", "gpt2", "deberta-v2")
RATE = 5e-3


def trial(rank: int, *, rate: float = RATE, seed: int = 3) -> Trial:
    return Trial(rank, alpha=2.0 * rank, use_rslora=False, learning_rate=rate, seed=seed)


class Setup:
    """A tiny float32 base model, its targets and a task."""

    def __init__(self, directory: Path, architecture: str) -> None:
        self.directory = save_model(directory, architecture)
        self.base: BaseModel = load_base(directory, num_labels=2, dtype="float32", device="cpu")
        self.targets: tuple[LinearLayer, ...] = match_targets(
            self.base.model, "all-linear", trained=self.base.trained_modules
        )
        self.task: Task = token_task()

    def run(
        self, trials: Sequence[Trial], settings: TrainingSettings, checkpoint: Path | None = None
    ) -> dict[Trial, TrainedTrial]:
        trained = run_pack(self.base, self.task, trials, self.targets, settings, checkpoint=checkpoint)
        return {one.result.trial: one for one in trained}


@pytest.fixture(scope="module", params=SHAPES)
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("model") / "bert", "bert")


def by_peft(setup: Setup, one: Trial, settings: TrainingSettings) -> list[float]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(setup.directory, num_labels=2)
    model.config.pad_token_id = 0
    adapted = peft_model(
        model,
        r=one.rank,
        lora_alpha=one.alpha,
        use_rslora=one.use_rslora,
        target_modules=[target.name for target in setup.targets],
        # PEFT saves heads by itself, and not what a checkpoint lacks besides.
        modules_to_save=[name for name in setup.base.trained_modules if "." in name],
    )
    start = initial_state(setup.base, one, setup.targets)

    def loss(model: peft.PeftModel, batch: Batch) -> torch.Tensor:
        return functional.cross_entropy(model(**batch.inputs).logits, batch.labels)

    return plain_peft_loop(adapted, start, setup.task, one, settings, loss)


def test_a_trial_alone_in_a_pack_of_other_ranks_and_seeds_and_trained_by_peft_has_one_loss_curve(setup: Setup) -> None:
    settings = TrainingSettings(steps=20, batch_size=8)
    trials = [trial(4), trial(1, seed=4), trial(64), trial(8, seed=5)]
    together = setup.run(trials, settings)
    for one in trials:
        alone = setup.run([one], settings)[one].result.train_nll
        expected = by_peft(setup, one, settings)
        assert alone == pytest.approx(expected, rel=1e-4)
        assert together[one].result.train_nll == pytest.approx(expected, rel=1e-4)
        # The curve must have something to agree on.
        assert abs(expected[-1] - expected[0]) > 1e-2


def test_a_diverged_trial_leaves_the_others_bit_for_bit_alone(setup: Setup) -> None:
    settings = TrainingSettings(steps=20, batch_size=8, evaluations=2)
    others = [trial(4), trial(8, rate=2e-3), trial(64, seed=4)]
    healthy = setup.run([*others, trial(8)], settings)
    beside = setup.run([*others, trial(8, rate=1e6)], settings)
    assert beside[trial(8, rate=1e6)].result.status == "diverged"
    assert math.isinf(beside[trial(8, rate=1e6)].result.validation_nll)
    for other in others:
        assert beside[other].result == healthy[other].result
        assert beside[other].result.status == "trained"
        assert all(torch.equal(beside[other].state[name], value) for name, value in healthy[other].state.items())


def test_a_trial_of_nothing_but_nan_leaves_the_others_bit_for_bit_alone(bert: Setup) -> None:
    settings = TrainingSettings(steps=6, batch_size=8)
    others = [trial(4), trial(64)]
    healthy = bert.run([*others, trial(8)], settings)
    broken = Trial(8, math.nan, False, RATE, seed=3)
    beside = bert.run([*others, broken], settings)
    assert beside[broken].result.status == "diverged"
    assert all(math.isnan(loss) for loss in beside[broken].result.train_nll)
    for other in others:
        assert beside[other].result == healthy[other].result


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 9, 12])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(
    at: int, bert: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointPace, "due", lambda self: True)
    monkeypatch.setattr("rankwise.train.loop._REPORT_SECONDS", 0.0)
    settings = TrainingSettings(steps=12, batch_size=8, accumulation=2, evaluations=3)
    trials = [trial(4), trial(8), trial(8, rate=1e-3), trial(8, seed=4)]
    undisturbed = bert.run(trials, settings)
    checkpoint = tmp_path / "pack.safetensors"

    def kill(report: StepReport) -> None:
        if report.step == at:
            raise KilledError

    with pytest.raises(KilledError):
        run_pack(bert.base, bert.task, trials, bert.targets, settings, checkpoint=checkpoint, observe=kill)
    resumed = bert.run(trials, settings, checkpoint)
    for one in trials:
        assert resumed[one].result == undisturbed[one].result
        assert all(torch.equal(resumed[one].state[name], value) for name, value in undisturbed[one].state.items())


@pytest.mark.parametrize(("seconds", "written"), [(1.0, [21, 42, 60]), (1.5, [21, 52, 60]), (10.0, [21, 60])])
def test_writing_checkpoints_takes_a_twentieth_of_the_time_at_most(
    seconds: float, written: list[int], bert: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond that of evaluations; a step takes a second here."""
    now, steps = 0.0, []
    write, step = loop.write_checkpoint, loop.train_step

    def takes_a_second(*arguments: Any) -> Any:
        nonlocal now
        now += 1.0
        return step(*arguments)

    def slow(*arguments: Any) -> None:
        nonlocal now
        now += seconds
        steps.append(arguments[-1].step)
        write(*arguments)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(loop, "train_step", takes_a_second)
    monkeypatch.setattr(loop, "write_checkpoint", slow)
    bert.run([trial(4)], TrainingSettings(steps=60, batch_size=2, evaluations=1), tmp_path / "pack.safetensors")
    assert steps == written


def leg(
    setup: Setup, trials: Sequence[Trial], settings: TrainingSettings, stop: int, name: str, directory: Path
) -> dict[Trial, TrainedTrial]:
    """Train trials to `stop` as pack `name`, from the states that they left in `directory`, and leave theirs."""
    checkpoint = directory / f"{name}.safetensors"
    states = {trial.id: directory / f"{trial.id}.safetensors" for trial in trials}
    begin = [state for state in states.values() if state.exists()]
    trained = run_pack(
        setup.base, setup.task, trials, setup.targets, settings, stop=stop, begin=begin, checkpoint=checkpoint
    )
    split_checkpoint(checkpoint, states)
    return {one.result.trial: one for one in trained}


def test_survivors_of_two_packs_go_on_in_a_third_as_if_they_had_never_stopped(setup: Setup, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=30, batch_size=8, accumulation=2, evaluations=3)
    one, two, three, four = trial(4), trial(64, rate=2e-3, seed=4), trial(4, rate=1e-3), trial(8)
    at_the_rung = leg(setup, [one, two, three], settings, 10, "first", tmp_path) | leg(
        setup, [four, trial(1)], settings, 10, "second", tmp_path
    )
    repacked = leg(setup, [four, two, one], settings, 30, "third", tmp_path)
    for survivor in (one, two, four):
        stopped, went_on = at_the_rung[survivor].result, repacked[survivor].result
        assert (stopped.status, went_on.status) == ("dropped", "trained")
        assert math.isinf(stopped.validation_nll)
        assert [evaluation.step for evaluation in stopped.evaluations] == [10]
        assert went_on.evaluations[:1] == stopped.evaluations
        assert went_on.train_nll[:10] == stopped.train_nll
        assert len(went_on.train_nll) == 30
        straight = setup.run([survivor], settings)[survivor].result
        assert went_on.train_nll == pytest.approx(straight.train_nll, rel=1e-4)
        losses = [evaluation.nll for evaluation in went_on.evaluations]
        assert losses == pytest.approx([evaluation.nll for evaluation in straight.evaluations], rel=1e-4)
        # The curve must have something to agree on after the rung.
        assert max(straight.train_nll[10:]) - min(straight.train_nll[10:]) > 1e-2


def test_a_pack_that_is_taken_up_again_whole_ends_bit_for_bit_as_if_it_had_never_stopped(
    bert: Setup, tmp_path: Path
) -> None:
    settings = TrainingSettings(steps=12, batch_size=8, evaluations=3)
    trials = [trial(4), trial(8), trial(8, rate=1e-3)]
    undisturbed = bert.run(trials, settings)
    leg(bert, trials, settings, 4, "first", tmp_path)
    resumed = leg(bert, trials, settings, 12, "second", tmp_path)
    for one in trials:
        assert resumed[one].result == undisturbed[one].result
        assert all(torch.equal(resumed[one].state[name], value) for name, value in undisturbed[one].state.items())


@pytest.mark.parametrize("at", [5, 8, 12])
def test_a_pack_of_survivors_goes_on_from_its_own_checkpoint_bit_for_bit(
    at: int, bert: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pack has one, the states that its trials began with are behind it."""
    monkeypatch.setattr(CheckpointPace, "due", lambda self: True)
    monkeypatch.setattr("rankwise.train.loop._REPORT_SECONDS", 0.0)
    settings = TrainingSettings(steps=12, batch_size=8, evaluations=3)
    trials = [trial(4), trial(8)]
    leg(bert, trials, settings, 4, "first", tmp_path)
    states = [tmp_path / f"{one.id}.safetensors" for one in trials]

    def kill(report: StepReport) -> None:
        if report.step == at:
            raise KilledError

    def go_on(checkpoint: Path, observe: Callable[[StepReport], None]) -> list[TrainedTrial]:
        return run_pack(
            bert.base, bert.task, trials, bert.targets, settings, begin=states, checkpoint=checkpoint, observe=observe
        )

    undisturbed = go_on(tmp_path / "undisturbed.safetensors", lambda report: None)
    with pytest.raises(KilledError):
        go_on(tmp_path / "killed.safetensors", kill)
    resumed = go_on(tmp_path / "killed.safetensors", lambda report: None)
    assert [one.result for one in resumed] == [one.result for one in undisturbed]


def test_states_of_two_rungs_are_not_trained_together(bert: Setup, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=4, batch_size=8, evaluations=2)
    leg(bert, [trial(4)], settings, 2, "first", tmp_path)
    leg(bert, [trial(8)], settings, 4, "second", tmp_path)
    with pytest.raises(RunError, match="belongs to other trials or another step"):
        leg(bert, [trial(4), trial(8)], settings, 4, "third", tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "not safetensors", "other trials"])
def test_a_damaged_checkpoint_is_named_and_never_trained_from(damage: str, bert: Setup, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=4, batch_size=8)
    checkpoint = tmp_path / "pack.safetensors"
    bert.run([trial(8 if damage == "other trials" else 4)], settings, checkpoint)
    content = checkpoint.read_bytes()
    if damage != "other trials":
        damaged = {"truncated": content[: len(content) // 2], "empty": b"", "not safetensors": b"x" * len(content)}
        checkpoint.write_bytes(damaged[damage])
    with pytest.raises(RunError, match=r"pack.safetensors (is damaged|belongs to other trials)") as error:
        bert.run([trial(4)], settings, checkpoint)
    assert str(error.value).isprintable()


def test_accumulated_batches_are_one_batch(bert: Setup) -> None:
    rows = [np.stack([np.arange(8), np.arange(30, 38)]), np.stack([np.arange(8, 20), np.arange(38, 50)])]
    settings = TrainingSettings(steps=4, warmup_ratio=0.0)

    def step(batches: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        with attached(bert.base, [trial(4), trial(8)], bert.targets) as pack:
            losses = train_step(pack, PackOptimizer(pack, settings), bert.task, batches, 0)
            return losses, torch.cat(pack.rows)

    losses, weights = step(rows)
    whole_losses, whole_weights = step([np.concatenate(rows, axis=1)])
    torch.testing.assert_close(losses, whole_losses)
    torch.testing.assert_close(weights, whole_weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_batches_are_added_in_float32(dtype: DtypeChoice, bert: Setup) -> None:
    """In bfloat16 a sum would lose most of what each of many batches brings."""
    base = load_base(bert.base.name, num_labels=2, device="cpu", dtype=dtype)
    batches = [np.arange(8 * number, 8 * number + 8)[None] for number in range(12)]
    with attached(base, [trial(4)], bert.targets) as pack:
        optimizer = PackOptimizer(pack, TrainingSettings(steps=4))
        pack.load(0, perturbed(pack.state(0), seed=1))
        backward(base, bert.task, batches, optimizer.collect)
        (row,) = optimizer.rows
        assert row.grad is not None
        added = row.grad.clone()
        whole = torch.zeros_like(added)
        outcomes = sum(collate(bert.task.train, rows.ravel(), 0).outcomes_by_row.sum() for rows in batches)
        for rows in batches:
            of_batch = collate(bert.task.train, rows.ravel(), bert.task.pad_token_id)
            (likelihood(base, of_batch).nll.sum() / outcomes).backward()
            whole += pack.take_grads()[0]
    assert torch.equal(added, whole)


def test_a_step_leaves_no_gradients(bert: Setup) -> None:
    """They would lie beside the activations of the next one."""
    with attached(bert.base, [trial(4)], bert.targets) as pack:
        optimizer = PackOptimizer(pack, TrainingSettings(steps=4))
        train_step(pack, optimizer, bert.task, [np.arange(8)[None]], 0)
        assert [row.grad for row in optimizer.rows] == [None]


def test_recomputed_activations_leave_the_model_as_it_was(setup: Setup) -> None:
    """transformers has the embeddings' outputs want gradients, which nothing here needs."""
    embeddings = setup.base.model.get_input_embeddings()
    with checkpointed_activations(setup.base, TrainingSettings(steps=1, checkpointing=True)):
        assert not embeddings(torch.tensor([[1]])).requires_grad
    assert not embeddings._forward_hooks


def test_recomputed_activations_change_nothing_but_memory(setup: Setup) -> None:
    trials = [trial(4), trial(8)]
    kept = setup.run(trials, TrainingSettings(steps=5, batch_size=8))
    recomputed = setup.run(trials, TrainingSettings(steps=5, batch_size=8, checkpointing=True))
    for one in trials:
        assert recomputed[one].result.train_nll == pytest.approx(kept[one].result.train_nll, rel=1e-6)
    assert not setup.base.model.is_activation_checkpointing


def test_scores_are_those_of_each_example_by_itself(setup: Setup) -> None:
    trials = [trial(4), trial(8)]
    trained = setup.run(trials, TrainingSettings(steps=5, batch_size=8))
    split = setup.task.test
    with attached(setup.base, trials, setup.targets) as pack:
        for index, one in enumerate(pack.trials):
            pack.load(index, trained[one].state)
        scores = score(setup.base, 2, setup.task, split)
        for row in range(0, len(split), 5):
            tokens = torch.from_numpy(split.input_ids[row].astype(np.int64)).repeat(2, 1)
            with torch.no_grad():
                logits = setup.base.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
            label = torch.tensor([int(split.labels[row])] * 2)
            expected = functional.cross_entropy(logits, label, reduction="none")
            assert scores.nll[:, row] == pytest.approx(expected.numpy(), rel=1e-4)
            assert scores.predicted is not None
            assert scores.predicted[:, row].tolist() == logits.argmax(-1).tolist()
            assert scores.correct[:, row].tolist() == (logits.argmax(-1) == label).float().tolist()


def test_each_trial_is_clipped_by_its_own_norm(bert: Setup) -> None:
    """One norm over the whole pack would let a trial with a large gradient slow the others down."""
    settings = TrainingSettings(steps=20, batch_size=8, max_grad_norm=0.05)
    alone = bert.run([trial(4)], settings)[trial(4)].result.train_nll
    beside = bert.run([trial(4), Trial(8, 800.0, False, RATE, seed=3)], settings)[trial(4)].result.train_nll
    assert beside == pytest.approx(alone, rel=1e-4)


def test_a_small_first_loss_is_no_yardstick_for_divergence(bert: Setup) -> None:
    """A checkpoint that knows the task starts near 0; one wrong label is then a thousand times its loss."""
    losses = torch.tensor([[1e-4], [0.9], [1e-4]])
    progress = PackProgress((trial(4),), losses, 3, [(Evaluation(3, 0.1, 1.0),)])
    with attached(bert.base, [trial(4)], bert.targets) as pack:
        assert _trained(pack, progress, 0, outcomes=2).result.status == "trained"
        progress.train_nll[1] = 1e3
        assert _trained(pack, progress, 0, outcomes=2).result.status == "diverged"
