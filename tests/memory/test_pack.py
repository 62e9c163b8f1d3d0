"""A pack's step on fake tensors against the same loop on real ones, and what a compared rank is told to fit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rankwise.base.load import load_base
from rankwise.errors import UserError
from rankwise.memory.estimate import estimate_ranks
from rankwise.memory.pack import pack_of, simulate_pack, trace_pack
from rankwise.memory.settings import StepSettings
from rankwise.records import Trial
from rankwise.train import likelihood
from rankwise.train.settings import TrainingSettings
from tests.lora.packs import load_case, targets_of
from tests.models import LANGUAGE_MODELS, VOCABULARY, save_model, tiny_config


def some_trials(*ranks: int) -> list[Trial]:
    return [Trial(rank, float(rank), False, 1e-3, seed) for seed, rank in enumerate(ranks)]


@pytest.mark.parametrize("case", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("ranks", [(4,), (4, 4, 8)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_take_the_bytes_of_real_ones(
    case: str, ranks: tuple[int, ...], checkpointing: bool, tmp_path: Path
) -> None:
    base = load_case(case, tmp_path)
    trials, targets = some_trials(*ranks), targets_of(base)
    training = TrainingSettings(steps=2, batch_size=3, checkpointing=checkpointing)
    fake = simulate_pack(base, trials, targets, training, 16, cuda=False).peak()
    real = trace_pack(base, trials, targets, training, 16).peak()
    assert fake.bytes_by_kind == real.bytes_by_kind
    assert base.model.training  # and is as it was
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("chunks", [1, 8])
def test_a_pack_of_language_models_too(
    architecture: str, chunks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, architecture, AutoModelForCausalLM.from_config)
    base = load_base(tmp_path, num_labels=None, device="cpu", dtype="float32")
    trials, targets = some_trials(4, 8), targets_of(base)
    training = TrainingSettings(steps=2, batch_size=3)
    monkeypatch.setattr(likelihood, "_LOGITS", 2 * 3 * 15 * VOCABULARY // chunks)
    fake = simulate_pack(base, trials, targets, training, 16, cuda=False).peak()
    real = trace_pack(base, trials, targets, training, 16).peak()
    assert fake.bytes_by_kind == real.bytes_by_kind


def test_a_further_trial_costs_what_the_first_did(tmp_path: Path) -> None:
    base = load_case("bert", tmp_path)
    training = TrainingSettings(steps=2, batch_size=3)
    peaks = [
        simulate_pack(base, some_trials(*[4] * count), targets_of(base), training, 16, cuda=False).peak().bytes
        for count in (1, 2, 3, 4)
    ]
    growth = [after - before for before, after in pairwise(peaks)]
    assert max(growth) - min(growth) <= 0.02 * max(growth)


def test_gradients_are_there_while_they_are_applied_and_no_longer(tmp_path: Path) -> None:
    """With a short text the peak is in the update, with a long one in the passes before."""
    base = load_case("bert", tmp_path)
    targets, trials = targets_of(base), some_trials(16, 16)
    parameters = sum(target.lora_params(16) for target in targets)
    gradients = {
        length: simulate_pack(base, trials, targets, TrainingSettings(steps=2, batch_size=rows), length, cuda=False)
        .peak()
        .bytes_by_kind["gradients"]
        for rows, length in ((1, 2), (32, 48))
    }
    assert gradients[2] >= 2 * 4 * parameters
    assert gradients[48] == 0


def test_a_pack_of_a_mixture_leaves_its_experts_alone() -> None:
    step = StepSettings(batch_size=2, seq_len=16)
    one, pack = (
        estimate_ranks(tiny_config("mixtral"), [4], settings=step, method="formula", pack_size=size) for size in (0, 1)
    )
    assert {group.name for group in pack.linear_layers if group.adapted} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert one.ranks[0].cost.memory.trainable_params > 2 * pack.ranks[0].cost.memory.trainable_params


def test_a_larger_pack_is_estimated_to_take_more() -> None:
    step = StepSettings(batch_size=2, seq_len=16)
    sizes = [estimate_ranks(tiny_config("bert"), [4], settings=step, pack_size=size) for size in (1, 4)]
    one, four = (estimate.ranks[0].cost.memory for estimate in sizes)
    assert four.memory.adapter_weights == 4 * one.memory.adapter_weights
    assert four.memory.optimizer_states > 3.9 * one.memory.optimizer_states
    assert one.peak_bytes < four.peak_bytes < 4 * one.peak_bytes


def test_a_model_without_sdpa_is_estimated_with_the_attention_it_has() -> None:
    step = StepSettings(batch_size=2, seq_len=16)
    estimate = estimate_ranks(tiny_config("deberta-v2"), [4], settings=step, pack_size=1)
    assert estimate.settings["method"] == "simulate"


@pytest.mark.parametrize(
    "step", [StepSettings(quantize="nf4"), StepSettings(optimizer="sgd"), StepSettings(dtype="float16")]
)
def test_what_packs_do_not_have_is_refused(step: StepSettings) -> None:
    with pytest.raises(UserError, match="engine pack has float32 adapters with adamw"):
        estimate_ranks(tiny_config("bert", max_position_embeddings=512), [4], settings=step, pack_size=2)


def test_a_language_model_is_estimated_as_one(tmp_path: Path) -> None:
    """With the logits of its output layer, as an instruction task trains it."""
    save_model(tmp_path, "llama", AutoModelForCausalLM.from_config)
    base = load_base(tmp_path, num_labels=None, device="cpu", dtype="bfloat16")
    step = StepSettings(batch_size=3, seq_len=16, attention="eager")  # as on a CPU, where it was loaded
    cost = estimate_ranks(tmp_path, [4], settings=step, pack_size=2).ranks[0].cost
    training = TrainingSettings(steps=2, batch_size=3)
    peak = simulate_pack(base, some_trials(4, 4), targets_of(base), training, 16, cuda=True).peak()
    parts = cost.memory.memory
    assert parts.activations == peak.bytes_by_kind["activations"]
    assert parts.total == pytest.approx(peak.bytes, rel=0.001)  # the allocator rounds up


@pytest.mark.parametrize("architecture", [*LANGUAGE_MODELS, "granite", "cohere"])
def test_where_logits_are_not_the_output_layer_s_is_known_from_the_configuration(
    architecture: str, tmp_path: Path
) -> None:
    config = tiny_config(architecture)
    save_model(tmp_path, architecture, AutoModelForCausalLM.from_config)
    loaded = load_base(tmp_path, num_labels=None, device="cpu", dtype="float32")
    described, _, _ = pack_of(config, 4, 1, StepSettings(dtype="float32"))
    assert described.plain_head == loaded.plain_head
