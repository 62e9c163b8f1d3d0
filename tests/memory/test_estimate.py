"""Estimates against PEFT, published figures and themselves: what must grow grows, parts add up, what fits fits."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    FalconMambaConfig,
    Llama4TextConfig,
    MambaConfig,
    PreTrainedConfig,
)

from rankwise.base.catalogue import catalogue, entry_config
from rankwise.base.shapes import is_causal
from rankwise.errors import UserError
from rankwise.memory.build import adapt, meta_step_model
from rankwise.memory.cuda import LARGER_WORKSPACE_BYTES
from rankwise.memory.estimate import CUDA_CONTEXT_BYTES, estimate_ranks, estimate_training_memory, largest_batch
from rankwise.memory.estimated import EstimatedModel
from rankwise.memory.parameters import estimate_lora_params
from rankwise.memory.settings import StepSettings
from rankwise.memory.steps import Steps
from rankwise.memory.trace import Trace
from tests.memory.test_simulate import step_settings
from tests.models import ARCHITECTURES, peft_model, tiny_config

ATTENTION = r".*(q_proj|v_proj|query|value|query_proj|value_proj|c_attn|query_key_value|qkv_proj|Wqkv|q_lin|v_lin)"
PUBLISHED = StepSettings(batch_size=4, seq_len=768)


def smallest_of_each_architecture() -> set[str]:
    by_size = sorted(catalogue().values(), key=lambda entry: -entry.params)
    return set({entry.config["model_type"]: entry.name for entry in by_size}.values())


QUICK = smallest_of_each_architecture()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in catalogue()]
)
def test_every_model_of_the_catalogue_counts_as_peft_does(name: str) -> None:
    config = entry_config(catalogue()[name])
    for targets, rank in (("all-linear", 8), (ATTENTION, 1)):
        model = meta_step_model(config, StepSettings())
        count = estimate_lora_params(model, rank, targets)
        peft = adapt(model, rank, targets, StepSettings())
        trained = {key: p.numel() for key, p in peft.named_parameters() if p.requires_grad}
        adapters = sum(numel for key, numel in trained.items() if "lora_" in key)
        heads = sum(trained.values()) - adapters
        assert (count.adapters, 0 if is_causal(config) else count.heads) == (adapters, heads)


def test_the_published_set_up() -> None:
    """PEFT's method comparison, Llama-3.2-3B: the count is exact, and the interval covers what was measured."""
    estimate = estimate_training_memory("llama-3.2-3b", 64, ["q_proj", "v_proj"], PUBLISHED)
    measured = 22_552_772_608  # reserved, at most, on an L40S
    assert estimate.trainable_params == 18_350_080
    assert abs(estimate.peak_bytes / measured - 1) < 0.03
    assert estimate.peak_bytes_low < measured < estimate.peak_bytes_high


def test_parts_add_up_and_rows_are_consistent() -> None:
    estimate = estimate_ranks(tiny_config("llama"), [8, 2], settings=step_settings())
    assert [row.rank for row in estimate.ranks] == [2, 8]
    for cost in (estimate.full_fine_tuning, *(row.cost for row in estimate.ranks)):
        memory = cost.memory
        assert memory.memory.total == memory.peak_bytes
        assert memory.peak_bytes_low < memory.peak_bytes < memory.peak_bytes_high
        assert memory.peak_bytes <= memory.reserved_bytes <= memory.peak_bytes_high
        assert all(isinstance(part, int) for part in dataclasses.astuple(memory.memory))
    assert estimate.full_fine_tuning.memory.trainable_params == estimate.total_params
    row = estimate.ranks[1]
    assert row.compression == estimate.total_params / row.cost.memory.trainable_params
    assert (row.cost.fits, row.cost.largest_batch, estimate.largest_rank_that_fits) == (None, None, None)
    assert 0 < estimate.ranks[0].rank_share_of_peak < row.rank_share_of_peak < 1


def test_a_second_rank_is_as_if_it_were_asked_for_alone() -> None:
    # Large enough that the allocator's rounding is not what a rank takes.
    config = tiny_config("bert", hidden_size=256, intermediate_size=512, num_hidden_layers=4)
    both = estimate_ranks(config, [16, 32], settings=step_settings())
    alone = estimate_ranks(config, [32], settings=step_settings())
    assert both.ranks[1].cost == alone.ranks[0].cost
    assert both.ranks[1].rank_share_of_peak == pytest.approx(alone.ranks[0].rank_share_of_peak, rel=0.25)


ALIKE: list[dict[str, Any]] = [
    {"checkpointing": True},
    {"quantize": "nf4"},
    {"optimizer": "adamw-8bit"},
    {"optimizer": "adafactor"},
    {"loss": "chunked"},
]


@pytest.mark.parametrize(
    ("architecture", "changed"),
    [(architecture, {}) for architecture in ARCHITECTURES]
    + [(architecture, changed) for architecture in ("llama", "bert") for changed in ALIKE],
)
def test_a_step_that_others_tell_of_is_the_step_itself(architecture: str, changed: dict[str, Any]) -> None:
    step, config = step_settings(**changed), tiny_config(architecture)
    together = EstimatedModel(config, "all-linear", "simulate")
    for rank, batch in [(None, 2), (None, 3), (3, 2), (6, 3)]:
        together.memory(rank, dataclasses.replace(step, batch_size=batch))
    for rank, batch in [(12, 2), (12, 7), (None, 7)]:
        settings = dataclasses.replace(step, batch_size=batch)
        assert together.memory(rank, settings) == EstimatedModel(config, "all-linear", "simulate").memory(
            rank, settings
        )


def test_one_rank_and_two_batches_are_followed_and_tell_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[tuple[bool, int]] = []
    follow = Steps._followed

    def counted(steps: Steps, rank: int | None, settings: StepSettings) -> Trace:
        followed.append((rank is None, settings.batch_size))
        return follow(steps, rank, settings)

    monkeypatch.setattr(Steps, "_followed", counted)
    settings = step_settings(batch_size=4, quantize="nf4")
    room = CUDA_CONTEXT_BYTES + 2 * LARGER_WORKSPACE_BYTES + 30 * 2**20
    estimated = estimate_ranks(tiny_config("llama"), [2, 4, 8, 16], settings=settings, gpu_bytes=room)
    assert all(row.cost.largest_batch for row in estimated.ranks)
    # Full fine-tuning, LoRA, and LoRA of the quantised model.
    assert sorted(followed) == [(False, 4), (False, 4), (False, 5), (False, 5), (True, 4), (True, 5)]


steps = st.builds(
    StepSettings,
    batch_size=st.integers(1, 5),
    seq_len=st.integers(1, 48),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    adapter_dtype=st.sampled_from(["float32", "bfloat16"]),
    optimizer=st.sampled_from(["adamw", "adamw-8bit", "sgd"]),
    checkpointing=st.booleans(),
    padding=st.just(True),
)


@settings(max_examples=15)
@given(steps, st.sampled_from(["llama", "gpt2", "bert"]), st.integers(1, 12), st.data())
def test_more_of_anything_never_lowers_the_peak(step: StepSettings, architecture: str, rank: int, data: Any) -> None:
    config = tiny_config(architecture)
    smaller = estimate_training_memory(config, rank, settings=step)
    field, value = data.draw(
        st.sampled_from(
            [
                ("batch_size", step.batch_size + 1),
                ("seq_len", step.seq_len + 3),
                ("dtype", "float32"),
                ("rank", rank + 2),
            ]
        )
    )
    if field == "dtype" and step.adapter_dtype == "float32":
        # A base in float32 spares the adapters their copies of its activations.
        return
    larger = (
        estimate_training_memory(config, value, settings=step)
        if field == "rank"
        else estimate_training_memory(config, rank, settings=dataclasses.replace(step, **{field: value}))
    )
    assert larger.peak_bytes >= smaller.peak_bytes


def test_bytes_per_weight_order_the_peaks() -> None:
    config = tiny_config("llama", hidden_size=128, intermediate_size=512, head_dim=32, num_hidden_layers=4)
    base = {
        how: estimate_training_memory(config, 4, settings=step_settings(quantize=how)).memory.base_weights
        for how in ("none", "int8", "nf4", "nf4-double")
    }
    assert base["none"] > base["int8"] > base["nf4"] > base["nf4-double"]


# Wide, so that a weight has few bytes of scales.
WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 4096}


@pytest.mark.parametrize("quantize", ["nf4", "nf4-double", "int8"])
@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("llama", {**WIDE, "head_dim": 64}),
        ("gpt2", {"n_embd": 256, "n_layer": 4, "vocab_size": 4096}),
        ("bert", WIDE),
    ],
)
def test_the_formula_knows_what_is_quantised(architecture: str, sizes: dict[str, Any], quantize: str) -> None:
    """Neither embeddings nor an output layer, be it tied to them (gpt2) or not (llama), nor a classifier's head."""
    config, step = tiny_config(architecture, **sizes), step_settings(quantize=quantize)
    simulated = estimate_training_memory(config, 4, settings=step)
    computed = estimate_training_memory(config, 4, settings=step, method="formula")
    assert computed.memory.base_weights == pytest.approx(simulated.memory.base_weights, rel=0.01)


def stored(config: PreTrainedConfig, **how: Any) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.quantization_config = how
    return config


NF4_DOUBLE = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
WIDE_LLAMA = tiny_config("llama", **{**WIDE, "head_dim": 64})


@pytest.mark.parametrize(
    ("how", "quantize"), [(NF4_DOUBLE, "nf4-double"), ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8")]
)
@pytest.mark.parametrize("method", ["simulate", "formula"])
def test_a_checkpoint_that_is_quantised_is_estimated_as_it_is_stored(how: Any, quantize: Any, method: Any) -> None:
    asked = step_settings(quantize=quantize)
    plain = estimate_ranks(WIDE_LLAMA, [4], settings=asked, method=method)
    found = estimate_ranks(stored(WIDE_LLAMA, **how), [4], settings=step_settings(), method=method)
    assert (found.ranks, found.settings) == (plain.ranks, plain.settings)
    assert found.notes == (f"the weights of llama are stored in {quantize}, and so is the base model here",)
    again = estimate_training_memory(stored(WIDE_LLAMA, **how), 4, settings=asked, method=method)
    assert again == plain.ranks[0].cost.memory
    with pytest.raises(UserError, match=f"weights of llama are stored in {quantize} already; leave it out"):
        estimate_training_memory(stored(WIDE_LLAMA, **how), 4, settings=step_settings(quantize="nf4"), method=method)


@pytest.mark.parametrize("method", ["simulate", "formula"])
def test_modules_that_a_quantised_checkpoint_left_whole_are(method: Any) -> None:
    def weights(*whole: str) -> int:
        config = stored(WIDE_LLAMA, **NF4_DOUBLE, llm_int8_skip_modules=["lm_head", *whole])
        return estimate_training_memory(config, 4, settings=step_settings(), method=method).memory.base_weights

    # Two bytes a weight in the place of 0.516.
    of_one = 1024 * 256 * (2 - 0.516)
    assert weights("model.layers.0.mlp.down_proj") - weights() == pytest.approx(of_one, rel=0.01)
    assert weights("down_proj") - weights() == pytest.approx(4 * of_one, rel=0.01)


@pytest.mark.parametrize("how", [{"quant_method": "fp8"}, {"quant_method": "mxfp4"}])
def test_of_a_checkpoint_that_is_quantised_otherwise_the_model_before_is_estimated(how: Any) -> None:
    found = estimate_ranks(stored(tiny_config("llama"), **how), [4], settings=step_settings())
    assert found.ranks == estimate_ranks(tiny_config("llama"), [4], settings=step_settings()).ranks
    (note,) = found.notes
    assert note.startswith(f"the weights of llama are quantised by {how['quant_method']}: ")
    assert note.endswith("; these figures are of the model as it was before")


def test_of_a_checkpoint_that_is_quantised_no_pack_is_estimated() -> None:
    with pytest.raises(UserError, match="engine pack: the weights of llama are stored in nf4-double"):
        estimate_ranks(stored(tiny_config("llama"), **NF4_DOUBLE), [4], settings=step_settings(), pack_size=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_formula_knows_what_is_trained(architecture: str) -> None:
    step = StepSettings(batch_size=4, seq_len=48)
    simulated = estimate_training_memory(tiny_config(architecture), 4, settings=step)
    computed = estimate_training_memory(tiny_config(architecture), 4, settings=step, method="formula")
    assert computed.trainable_params == simulated.trainable_params
    # A head keeps the base model's dtype in PEFT; the formula counts it as a part of the adapter.
    assert computed.memory.adapter_weights == pytest.approx(simulated.memory.adapter_weights, rel=0.2)
    assert computed.memory.optimizer_states == pytest.approx(simulated.memory.optimizer_states, rel=0.2)


FORMULAS: list[tuple[str, dict[str, Any]]] = [
    (name, changed)
    for name in ("llama-3.2-3b", "qwen3-0.6b", "gemma-2-2b", "bert-base-uncased")
    for changed in ({}, {"checkpointing": True}, {"quantize": "nf4"}, {"seq_len": 128})
]


FORMULAS += [
    ("albert-base-v2", {"batch_size": 8}),  # one block that runs twelve times
    ("albert-base-v2", {"batch_size": 8, "attention": "eager"}),
    ("deberta-v3-base", {"batch_size": 16}),  # it has no sdpa
    ("deberta-v3-base", {"batch_size": 16, "checkpointing": True}),
    ("bert-base-uncased", {"attention": "eager"}),
    ("bert-base-uncased", {"attention": "eager", "dtype": "float32"}),
    ("gpt2", {"attention": "eager"}),
    ("llama-3.2-1b", {"attention": "eager", "seq_len": 2048}),
    ("llama-3.2-1b", {"attention": "eager", "seq_len": 2048, "checkpointing": True}),
]


# Every model as it is, and every setting with an encoder and a decoder.
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        pytest.param(name, changed, marks=pytest.mark.slow if changed and name[0] in "qg" else ())
        for name, changed in FORMULAS
    ],
)
def test_the_formulas_interval_covers_the_simulation(name: str, changed: dict[str, Any]) -> None:
    step = StepSettings(**({"batch_size": 4, "seq_len": 512} | changed))
    simulated = estimate_training_memory(name, 16, settings=step)
    computed = estimate_training_memory(name, 16, settings=step, method="formula")
    assert computed.peak_bytes_low <= simulated.peak_bytes <= computed.peak_bytes_high


def test_the_formula_claims_no_fit_of_a_mixture_of_experts() -> None:
    config, room = tiny_config("mixtral", intermediate_size=128), 80 * 10**9
    claimed = estimate_ranks(config, [4], settings=step_settings(seq_len=64), gpu_bytes=room)
    computed = estimate_ranks(config, [4], settings=step_settings(seq_len=64), gpu_bytes=room, method="formula")
    assert computed.ranks[0].cost.memory.peak_bytes < claimed.ranks[0].cost.memory.peak_bytes
    for cost, other in zip(computed.methods, claimed.methods, strict=True):
        assert (cost.fits, cost.largest_batch, other.fits) == (None, None, True)
    assert (claimed.largest_rank_that_fits, computed.largest_rank_that_fits) == (4, None)
    assert [note for note in computed.notes if "does not say what fits" in note] == list(computed.notes)
    assert claimed.notes == ()


@pytest.mark.parametrize("architecture", ["llama", "bert", "gpt2"])
def test_the_adapter_file_has_the_size_that_peft_writes(architecture: str, tmp_path: Path) -> None:
    config = tiny_config(architecture)
    estimate = estimate_ranks(config, [5], settings=step_settings(dtype="float32"))
    auto = AutoModelForCausalLM if is_causal(config) else AutoModelForSequenceClassification
    torch.manual_seed(0)
    peft = peft_model(auto.from_config(config), r=5, target_modules="all-linear", **_task(config))
    peft.save_pretrained(tmp_path)
    assert estimate.ranks[0].adapter_file_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size


def _task(config: Any) -> dict[str, str]:
    return {"task_type": "CAUSAL_LM"} if is_causal(config) else {}


def test_what_fits_a_gpu() -> None:
    config = tiny_config("llama", hidden_size=512, intermediate_size=512, num_hidden_layers=6)
    step = step_settings(seq_len=64)

    def peak(rank: int, batch_size: int = step.batch_size) -> int:
        changed = dataclasses.replace(step, batch_size=batch_size)
        return estimate_training_memory(config, rank, settings=changed).peak_bytes_high

    room = CUDA_CONTEXT_BYTES + peak(64)
    estimate = estimate_ranks(config, [1, 64, 256], settings=step, gpu_bytes=room)
    assert [row.cost.fits for row in estimate.ranks] == [True, True, False]
    assert estimate.largest_rank_that_fits == 64
    assert [cost.method for cost in estimate.methods] == ["full", "lora", "qlora"]
    largest = estimate.ranks[0].cost.largest_batch
    assert largest is not None
    assert peak(1, largest) + CUDA_CONTEXT_BYTES <= room < peak(1, largest + 1) + CUDA_CONTEXT_BYTES


def test_nothing_fits_a_gpu_that_is_too_small() -> None:
    estimate = estimate_ranks(tiny_config("llama"), [4], settings=step_settings(), gpu_bytes=CUDA_CONTEXT_BYTES)
    assert estimate.largest_rank_that_fits is None
    assert {cost.largest_batch for cost in estimate.methods} == {0}


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(0, 10**7), st.integers(1, 64), st.booleans())
def test_the_largest_batch_is_the_largest(fixed: int, each: int, room: int, start: int, bent: bool) -> None:
    def peak(batch: int) -> int:
        return fixed + each * batch + (each * batch**2 // 50 if bent else 0)

    found = largest_batch(peak, room, start)
    assert found == 2**16 or ((peak(found) <= room or found == 0) and peak(found + 1) > room)


@pytest.mark.parametrize("method", ["simulate", "formula"])
@pytest.mark.parametrize("kind", [MambaConfig, FalconMambaConfig])
def test_what_peft_refuses_is_said_in_one_line(kind: type[PreTrainedConfig], method: Any) -> None:
    config = kind(hidden_size=32, num_hidden_layers=2, vocab_size=100, state_size=8, pad_token_id=0)
    others = ["in_proj", "x_proj"]
    assert estimate_training_memory(config, 4, others, step_settings(), method=method).peak_bytes > 0
    with pytest.raises(ValueError, match="Module 'out_proj' is incompatible"):
        peft_model(meta_step_model(config, step_settings()), r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    for targets in ("all-linear", [*others, "out_proj"]):
        with pytest.raises(UserError, match=r"PEFT adapts no out_proj of a (falcon_)?mamba model, such as backbone\."):
            estimate_training_memory(config, 4, targets, step_settings(), method=method)


def test_a_layer_that_cannot_be_called_with_an_adapter_is_named() -> None:
    """Llama 4's router is a linear layer that returns two tensors."""
    config = Llama4TextConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"head_dim": 8, "intermediate_size": 48, "intermediate_size_mlp": 48, "num_local_experts": 4},
        **{"vocab_size": 100, "pad_token_id": 0},
    )
    assert estimate_training_memory(config, 4, ["q_proj"], step_settings()).peak_bytes > 0
    with pytest.raises(UserError, match=r"adapter on model\.layers\.0\.feed_forward\.router the model cannot"):
        estimate_training_memory(config, 4, settings=step_settings())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"rank": 33}, "rank 33 is more than any adapted layer has"),
        ({"rank": 0}, "rank 0: an adapter's rank is at least 1"),
        (
            {
                **{"model": tiny_config("albert"), "rank": 4, "target_modules": ["query"]},
                "settings": step_settings(checkpointing=True),
            },
            "checkpointing: AlbertForSequenceClassification does not support",
        ),
        ({"rank": 4, "target_modules": ["q_prj"]}, "'q_prj' matches no linear layer; the nearest names are q_proj"),
        ({"rank": 4, "settings": StepSettings(seq_len=65)}, "seq-len 65: the model has positions for 64 tokens"),
    ],
)
def test_what_cannot_be_estimated_is_said_in_one_line(call: dict[str, Any], message: str) -> None:
    targets = {"target_modules": ["q_proj", "k_proj"]}
    with pytest.raises(UserError, match=message) as raised:
        estimate_training_memory(**({"model": tiny_config("llama")} | targets | call))
    assert "\n" not in str(raised.value)
