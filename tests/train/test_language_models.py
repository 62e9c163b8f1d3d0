"""Packs of language models against PEFT and transformers: the loss that is learned, and what must not be learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer, match_targets
from rankwise.errors import UserError
from rankwise.lora.attach import attached, initial_state
from rankwise.lora.peft_io import write_adapter
from rankwise.records import Trial
from rankwise.tasks.task import Batch, Ragged, Split, Task, collate, training_rows
from rankwise.train import likelihood as likelihood_module
from rankwise.train.baseline import fit_baseline
from rankwise.train.likelihood import likelihood
from rankwise.train.loop import run_pack, score
from rankwise.train.settings import TrainingSettings
from tests.lora.packs import random_state
from tests.models import LANGUAGE_MODELS, VOCABULARY, load_peft_model, peft_model, save_model
from tests.train.peft_loop import plain_peft_loop

RANKS = (1, 4, 16)


def completion_task(train: int = 64, held_out: int = 16, seed: int = 0) -> Task:
    """Prompts of random tokens; the completion is the prompt's first one to three tokens and an end."""
    generator = np.random.default_rng(seed)

    def split(size: int) -> Split:
        prompts = [generator.integers(4, VOCABULARY, generator.integers(3, 9)).tolist() for _ in range(size)]
        completions = [[*prompt[: generator.integers(1, 4)], 3] for prompt in prompts]
        ids = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        learned = [
            [0] * len(prompt) + [1] * len(completion) for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return Split(
            np.arange(size),
            Ragged.from_rows(ids),
            None,
            np.zeros(size, dtype=np.int64),
            None,
            Ragged.from_rows(learned),
        )

    return Task("completion", (), VOCABULARY, split(train), split(held_out), split(held_out), pad_token_id=0)


TASK = completion_task()


@pytest.fixture(scope="module", params=LANGUAGE_MODELS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    directory = tmp_path_factory.mktemp(request.param)
    # GPT-2 and Gemma tie their output layer to the embeddings.
    save_model(directory, request.param, transformers.AutoModelForCausalLM.from_config)
    return load_base(directory, num_labels=None, dtype="float32", device="cpu")


@pytest.fixture
def targets(base: BaseModel) -> tuple[LinearLayer, ...]:
    return match_targets(base.model, "all-linear")


def trial(rank: int, *, seed: int = 3) -> Trial:
    return Trial(rank, 2.0 * rank, False, 5e-3, seed)


def labels_of(batch: Batch) -> Tensor:
    """As transformers takes them: -100 for what is not learned."""
    assert batch.learned is not None
    labels = torch.full_like(batch.input_ids, -100)
    where = batch.learned.rows, batch.learned.columns
    labels[where] = batch.input_ids[where]
    return labels


def loss_with_labels(model: peft.PeftModel, batch: Batch) -> Tensor:
    """transformers' own loss."""
    loss: Tensor = model(**batch.inputs, labels=labels_of(batch)).loss
    return loss


def by_peft(base: BaseModel, targets: tuple[LinearLayer, ...], one: Trial, settings: TrainingSettings) -> list[float]:
    model = transformers.AutoModelForCausalLM.from_pretrained(base.name, attn_implementation="eager")
    names = [target.name for target in targets]
    adapted = peft_model(model, task_type="CAUSAL_LM", r=one.rank, lora_alpha=one.alpha, target_modules=names)
    start = initial_state(base, one, targets)
    return plain_peft_loop(adapted, start, TASK, one, settings, loss_with_labels)


def test_a_trial_in_a_pack_and_trained_by_peft_has_one_loss_curve(
    base: BaseModel, targets: tuple[LinearLayer, ...]
) -> None:
    settings = TrainingSettings(steps=20, batch_size=8)
    together = run_pack(base, TASK, [trial(rank, seed=rank) for rank in RANKS], targets, settings)
    for one in together:
        expected = by_peft(base, targets, one.result.trial, settings)
        assert one.result.train_nll == pytest.approx(expected, rel=1e-4)
        assert abs(expected[-1] - expected[0]) > 1e-2


def test_trials_that_learn_unequally_many_tokens_accumulate_each_their_own_mean(
    base: BaseModel, targets: tuple[LinearLayer, ...]
) -> None:
    settings = TrainingSettings(steps=10, batch_size=3, accumulation=2)
    trials = [trial(2), trial(2, seed=4), trial(4, seed=5)]
    for one in run_pack(base, TASK, trials, targets, settings):
        (alone,) = run_pack(base, TASK, [one.result.trial], targets, settings)
        assert one.result.train_nll == pytest.approx(alone.result.train_nll, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning")  # GPT-2 has layers of both kinds
def test_trials_with_adapters_on_the_output_layer_are_kept_apart(base: BaseModel) -> None:
    targets = match_targets(
        base.model, [target.name for target in match_targets(base.model, "all-linear")[:2]] + ["lm_head"]
    )
    settings = TrainingSettings(steps=10, batch_size=5, evaluations=1)
    trials = [trial(2), trial(2, seed=4), trial(4, seed=5)]
    for one in run_pack(base, TASK, trials, targets, settings):
        expected = by_peft(base, targets, one.result.trial, settings)
        assert one.result.train_nll == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_is_the_mean_over_all_its_learned_tokens(
    base: BaseModel, targets: tuple[LinearLayer, ...], accumulation: int
) -> None:
    settings = TrainingSettings(steps=1, batch_size=6 // accumulation, accumulation=accumulation)
    (trained,) = run_pack(base, TASK, [trial(2)], targets, settings)
    rows = list(islice(training_rows(TASK.train.input_ids.lengths, settings.batch_size, 3), accumulation))
    scores = score(base, 1, TASK, TASK.train)
    chosen = np.concatenate(rows)
    assert TASK.train.learned is not None
    tokens = np.array([TASK.train.learned[row].sum() for row in chosen])
    assert trained.result.train_nll[0] == pytest.approx((scores.nll[0, chosen] * tokens).sum() / tokens.sum(), rel=1e-5)


def test_logits_in_chunks_are_the_logits(
    base: BaseModel, targets: tuple[LinearLayer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainingSettings(steps=5, batch_size=8)
    trials = [trial(2), trial(4)]
    whole = run_pack(base, TASK, trials, targets, settings)
    monkeypatch.setattr(likelihood_module, "_LOGITS", VOCABULARY * 3)  # three tokens at once
    chunked = run_pack(base, TASK, trials, targets, settings)
    for one, other in zip(whole, chunked, strict=True):
        assert one.result.train_nll == pytest.approx(other.result.train_nll, rel=1e-5)


def test_whether_the_output_layer_is_all_is_found_out(base: BaseModel) -> None:
    assert base.plain_head == (base.model.config.model_type != "gemma2")  # which caps its logits


@pytest.fixture
def hidden(base: BaseModel) -> Iterator[list[Tensor]]:
    """What the last layer returns."""
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, outputs: transformers.utils.ModelOutput) -> None:
        seen.append(outputs.last_hidden_state)
        seen[-1].retain_grad()

    handle = base.model.base_model.register_forward_hook(keep)
    yield seen
    handle.remove()


def test_no_token_but_those_before_a_learned_one_has_a_gradient(
    base: BaseModel, targets: tuple[LinearLayer, ...], hidden: list[Tensor]
) -> None:
    batch = collate(TASK.train, np.arange(6), pad_token_id=0)
    assert batch.learned is not None
    with attached(base, [trial(4)], targets) as pack:
        pack.load(0, random_state(base, trial(4), targets))
        likelihood(base, batch).nll.sum().backward()
        pack.take_grads()
    gradient = hidden[0].grad
    assert gradient is not None
    reached = gradient.abs().sum(dim=-1) > 0
    expected = torch.zeros_like(reached)
    expected[batch.learned.rows, batch.learned.columns - 1] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("tokens_at_once", [1, 3, 100])
def test_a_frozen_output_layer_passes_the_gradients_that_a_trained_one_does(
    base: BaseModel,
    targets: tuple[LinearLayer, ...],
    hidden: list[Tensor],
    tokens_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Autograd's, of transformers' own output layer and PyTorch's cross entropy."""
    monkeypatch.setattr(likelihood_module, "_LOGITS", VOCABULARY * tokens_at_once)
    batch = collate(TASK.train, np.arange(6), pad_token_id=0)
    weights = torch.rand(6, generator=torch.Generator().manual_seed(0))
    head = base.model.get_output_embeddings().requires_grad_(False)
    found = []
    with attached(base, [trial(4)], targets) as pack:
        pack.load(0, random_state(base, trial(4), targets))
        for trained in (False, True):
            head.requires_grad_(trained)
            of = likelihood(base, batch)
            (of.nll * weights).sum().backward()
            found.append((of.nll.detach(), of.right, hidden[-1].grad))
        head.requires_grad_(False)
        pack.take_grads()
    head.weight.grad = None
    torch.testing.assert_close(*found)


def test_padding_and_what_comes_after_the_completion_do_not_matter(base: BaseModel) -> None:
    """By perturbation: other tokens after the last learned one change nothing before it."""
    batch = collate(TASK.train, np.arange(6), pad_token_id=0)
    ids = batch.input_ids.clone()
    ids[batch.attention_mask == 0] = 7
    other = Batch(ids, batch.attention_mask, None, batch.labels, batch.learned)
    alone = collate(TASK.train, np.arange(1), pad_token_id=0)
    with torch.no_grad():
        first, second, by_itself = (likelihood(base, each).nll for each in (batch, other, alone))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first[:1], by_itself)


def test_scores_are_means_over_tokens_and_shares_of_first_choices(base: BaseModel) -> None:
    scores = score(base, 1, TASK, TASK.test)
    assert scores.predicted is None
    assert TASK.test.learned is not None
    for row in range(0, len(TASK.test), 5):
        tokens = int(TASK.test.learned[row].sum())
        ids = torch.from_numpy(TASK.test.input_ids[row].astype(np.int64))[None]
        with torch.no_grad():
            logits = base.model(input_ids=ids).logits[0, -tokens - 1 : -1].log_softmax(dim=-1)
        targets = ids[0, -tokens:]
        assert scores.nll[0, row] == pytest.approx(-logits[range(tokens), targets].mean().item(), rel=1e-4)
        assert scores.correct[0, row] == (logits.argmax(dim=-1) == targets).float().mean()


def test_an_exact_completion_is_what_greedy_decoding_writes(base: BaseModel) -> None:
    """Of completions that the model itself wrote half are left as they are, of the others a token is changed."""
    generator, rows = np.random.default_rng(1), []
    for number in range(8):
        prompt = torch.tensor([generator.integers(4, VOCABULARY, 5).tolist()])
        with torch.no_grad():
            whole = base.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False, eos_token_id=None
            )[0].tolist()
        if number % 2:
            whole[6] = (whole[6] + 1) % VOCABULARY
        rows.append(whole)
    none = np.zeros(8, dtype=np.int64)
    split = Split(np.arange(8), Ragged.from_rows(rows), None, none, learned=Ragged.from_rows([[0] * 5 + [1] * 4] * 8))
    exact = score(base, 1, dataclasses.replace(TASK, exact=True), split).correct[0]
    assert exact.tolist() == [1, 0] * 4
    assert (score(base, 1, TASK, split).correct[0][1::2] < 1).all()


def test_rank_0_is_the_model_as_it_is(base: BaseModel) -> None:
    baseline = fit_baseline(base, TASK, seed=0)
    assert baseline.validation.nll == pytest.approx(score(base, 1, TASK, TASK.validation).nll.mean())
    assert (baseline.test.nll == score(base, 1, TASK, TASK.test).nll).all()


def test_peft_loads_the_adapter_and_has_the_same_loss(
    base: BaseModel, targets: tuple[LinearLayer, ...], tmp_path: Path
) -> None:
    one = trial(4)
    state = random_state(base, one, targets)
    write_adapter(tmp_path / "adapter", base, one, state, targets)
    batch = collate(TASK.train, np.arange(6), pad_token_id=0)
    assert batch.learned is not None
    with attached(base, [one], targets) as pack, torch.no_grad():
        pack.load(0, state)
        ours = likelihood(base, batch).nll.sum() / len(batch.learned.rows)
    model = transformers.AutoModelForCausalLM.from_pretrained(base.name, attn_implementation="eager")
    adapted = load_peft_model(model, tmp_path / "adapter").eval()
    assert isinstance(adapted, peft.PeftModelForCausalLM)
    with torch.no_grad():
        theirs = adapted(**batch.inputs, labels=labels_of(batch)).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_an_encoder_is_no_language_model(architecture: str, tmp_path: Path) -> None:
    save_model(tmp_path, architecture)
    with pytest.raises(UserError, match=f"^a {architecture} model is no causal language model: give one"):
        load_base(tmp_path, num_labels=None, dtype="float32", device="cpu")


def test_a_model_that_looks_ahead_is_no_language_model(tmp_path: Path) -> None:
    save_model(tmp_path, "bert", transformers.AutoModelForCausalLM.from_config)  # BERT without `is_decoder`
    with pytest.raises(UserError, match="lets a token see those after it"):
        load_base(tmp_path, num_labels=None, dtype="float32", device="cpu")


def test_an_evaluation_without_a_plain_head_is_as_small_as_its_logits(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(base, 1, TASK, TASK.test)
    monkeypatch.setattr(likelihood_module, "_LOGITS", 20 * VOCABULARY)
    rows = []
    handle = base.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    small = score(base, 1, TASK, TASK.test)
    handle.remove()
    assert small.nll == pytest.approx(whole.nll, rel=1e-4)
    assert (max(rows) <= 20) == (not base.plain_head)


def test_a_checkpoint_without_its_output_layer_is_no_language_model(tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    with pytest.raises(UserError, match="lack lm_head: they are not those of a language model"):
        load_base(tmp_path, num_labels=None, dtype="float32", device="cpu")
