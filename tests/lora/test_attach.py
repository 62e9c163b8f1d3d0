from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.lora.attach import Pack, State, attached, initial_state
from rankwise.records import Trial
from tests.lora.packs import (
    LABELS,
    POOLERLESS,
    load_case,
    load_reference,
    logits_of,
    perturbed,
    repeated,
    some_batch,
    targets_of,
)
from tests.models import peft_model, save_model

Setup = tuple[BaseModel, tuple[LinearLayer, ...]]
ROWS = 4


def trial(rank: int, *, seed: int = 0, use_rslora: bool = False, alpha: float = 6) -> Trial:
    return Trial(rank, alpha, use_rslora, learning_rate=1e-3, seed=seed)


MIXED = [trial(1), trial(3), trial(3, seed=1, use_rslora=True, alpha=2), trial(9)]


@pytest.fixture(scope="module", params=["bert", POOLERLESS, "llama", "gpt2", "deberta-v2"])
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    base = load_case(request.param, tmp_path_factory.mktemp("base"))
    return base, targets_of(base)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    base = load_case("bert", tmp_path_factory.mktemp("base"))
    return base, targets_of(base)


def in_peft(base: BaseModel, trial: Trial, state: State, targets: tuple[LinearLayer, ...]) -> PeftModel:
    """The same trial in PEFT's own layers, by its own way of loading a state."""
    model = peft_model(
        load_reference(base),
        r=trial.rank,
        lora_alpha=trial.alpha,
        use_rslora=trial.use_rslora,
        target_modules=[target.name for target in targets],
        modules_to_save=[name for name in base.trained_modules if "." in name],
    )
    loaded = set_peft_model_state_dict(model, {f"base_model.model.{name}": value for name, value in state.items()})
    assert not loaded.unexpected_keys
    return model.eval()


def losses(logits: Tensor) -> Tensor:
    """A loss a trial, of (trials · rows, labels)."""
    labels = torch.arange(len(logits)) % ROWS % LABELS
    return functional.cross_entropy(logits, labels, reduction="none").view(-1, ROWS).mean(dim=1)


def load_random(pack: Pack) -> list[State]:
    states = [perturbed(pack.state(index), seed=index) for index in range(len(pack.trials))]
    for index, state in enumerate(states):
        pack.load(index, state)
    return states


@pytest.mark.parametrize("as_on_cuda", [False, True])
def test_every_trial_of_a_pack_computes_and_differentiates_as_peft_does(setup: Setup, as_on_cuda: bool) -> None:
    base, targets = setup
    with attached(base, MIXED, targets, as_on_cuda=as_on_cuda) as pack:
        states = load_random(pack)
        logits = base.model(**repeated(some_batch(ROWS), len(MIXED))).logits
        losses(logits).sum().backward()
        gradients = [pack.named(index, gradient) for index, gradient in enumerate(pack.take_grads())]
    for index, (one, state) in enumerate(zip(pack.trials, states, strict=True)):
        model = in_peft(base, one, state, targets)
        theirs = model(**some_batch(ROWS)).logits
        torch.testing.assert_close(logits.view(len(MIXED), ROWS, -1)[index], theirs, rtol=0, atol=1e-5)
        losses(theirs).sum().backward()
        expected = {
            name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", ""): one.grad
            for name, one in model.named_parameters()
            if one.requires_grad
        }
        assert set(gradients[index]) == set(expected) == set(state)
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[index][name], gradient, rtol=1e-4, atol=1e-6)


def test_gradients_are_taken_once(bert: Setup) -> None:
    base, targets = bert
    with attached(base, MIXED, targets) as pack:
        for _ in range(2):
            losses(base.model(**repeated(some_batch(ROWS), len(MIXED))).logits).sum().backward()
        twice = pack.take_grads()
        losses(base.model(**repeated(some_batch(ROWS), len(MIXED))).logits).sum().backward()
        for both, once in zip(twice, pack.take_grads(), strict=True):
            torch.testing.assert_close(both, 2 * once)
        assert not any(gradient.any() for gradient in pack.take_grads())


def test_a_fresh_pack_computes_what_the_base_model_does_under_its_heads(bert: Setup) -> None:
    base, targets = bert
    same_seed = [trial(1), trial(9)]
    logits = logits_of(base, targets, [(one, initial_state(base, one, targets)) for one in same_seed])
    torch.testing.assert_close(logits[0], logits[1])
    head = initial_state(base, same_seed[0], targets)
    with torch.no_grad():
        pooled = base.model.bert(**some_batch(ROWS)).pooler_output
    torch.testing.assert_close(logits[0], functional.linear(pooled, head["classifier.weight"], head["classifier.bias"]))


def test_heads_start_by_the_seed_alone(bert: Setup) -> None:
    base, targets = bert
    small, large, other = (initial_state(base, one, targets) for one in (trial(1), trial(9), trial(1, seed=1)))
    assert torch.equal(small["classifier.weight"], large["classifier.weight"])
    assert not torch.equal(small["classifier.weight"], other["classifier.weight"])


def test_heads_of_the_checkpoint_start_from_it(tmp_path: Path) -> None:
    save_model(tmp_path, "roberta", AutoModelForSequenceClassification.from_config)
    base = load_base(tmp_path, num_labels=2, device="cpu", dtype="float32")
    state = initial_state(base, trial(2), targets_of(base))
    assert torch.equal(state["classifier.dense.weight"], base.model.classifier.dense.weight)
    assert torch.equal(state["classifier.out_proj.bias"], base.model.classifier.out_proj.bias)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("interrupted", [False, True])
def test_afterwards_the_base_model_is_what_it_was(interrupted: bool, setup: Setup) -> None:
    base, targets = setup
    modules = {name: id(module) for name, module in base.model.named_modules()}
    weights = {name: value.clone() for name, value in base.model.state_dict().items()}
    with pytest.raises(Interrupted) if interrupted else torch.enable_grad(), attached(base, MIXED, targets) as pack:
        load_random(pack)
        losses(base.model(**repeated(some_batch(ROWS), len(MIXED))).logits).sum().backward()
        if interrupted:
            raise Interrupted
    assert {name: id(module) for name, module in base.model.named_modules()} == modules
    assert all(torch.equal(value, weights[name]) for name, value in base.model.state_dict().items())
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_a_pack_that_cannot_be_attached_leaves_the_base_model_alone(bert: Setup) -> None:
    base, targets = bert
    modules = {name: id(module) for name, module in base.model.named_modules()}
    with pytest.raises(AttributeError), attached(base, MIXED, [*targets, LinearLayer("missing", 1, 1)]):
        pass
    assert {name: id(module) for name, module in base.model.named_modules()} == modules


@pytest.mark.parametrize("sick", range(len(MIXED)))
def test_a_trial_that_is_not_a_number_leaves_the_others_bit_for_bit(sick: int, setup: Setup) -> None:
    base, targets = setup

    def run(*, poisoned: bool) -> tuple[Tensor, list[Tensor]]:
        with attached(base, MIXED, targets) as pack:
            for index, state in enumerate(load_random(pack)):
                if poisoned and index == sick:
                    state[f"{targets[0].name}.lora_A.weight"][0, 0] = torch.nan
                    pack.load(index, state)
            logits = base.model(**repeated(some_batch(ROWS), len(MIXED))).logits
            losses(logits).sum().backward()
            return logits.detach().view(len(MIXED), ROWS, -1), pack.take_grads()

    healthy_logits, healthy_gradients = run(poisoned=False)
    logits, gradients = run(poisoned=True)
    assert logits[sick].isnan().all()
    assert gradients[sick].isnan().any()
    for index in set(range(len(MIXED))) - {sick}:
        assert torch.equal(logits[index], healthy_logits[index])
        assert torch.equal(gradients[index], healthy_gradients[index])


def test_trials_are_ordered_by_rank_and_loaded_apart(bert: Setup) -> None:
    base, targets = bert
    with attached(base, MIXED[::-1], targets) as pack:
        assert [one.rank for one in pack.trials] == [1, 3, 3, 9]
        states = load_random(pack)
        for index, state in enumerate(states):
            found = pack.state(index)
            assert found.keys() == state.keys()
            assert all(torch.equal(found[name], state[name]) for name in state)
        assert [len(row) for row in pack.rows] == [sum(value.numel() for value in state.values()) for state in states]
        with pytest.raises(ValueError, match="not those of this trial"):
            pack.load(0, states[0] | {"other": torch.zeros(1)})
