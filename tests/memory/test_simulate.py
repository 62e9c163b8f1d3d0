"""A step on fake tensors against the same step on real ones: every byte of the peak, by kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

from rankwise.memory.build import adapt, give_storage, meta_step_model
from rankwise.memory.cuda import cuda_kernels
from rankwise.memory.settings import StepSettings
from rankwise.memory.simulate import fake_tensors, trace_step
from rankwise.memory.step import make_optimizer
from rankwise.memory.trace import Trace
from tests.models import ARCHITECTURES, tiny_config

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float32": {"dtype": "float32"},
    "bfloat16 adapter": {"adapter_dtype": "bfloat16"},
    "one row": {"batch_size": 1},
    "checkpointing": {"checkpointing": True},
    "eager": {"attention": "eager"},
    "chunked": {"loss": "chunked"},
    "autocast": {"autocast": True},
    "nf4": {"quantize": "nf4"},
    "nf4-double": {"quantize": "nf4-double"},
    "int8": {"quantize": "int8"},
    "adamw-foreach": {"optimizer": "adamw-foreach"},
    "adamw-8bit": {"optimizer": "adamw-8bit"},
    "sgd": {"optimizer": "sgd"},
    "adafactor": {"optimizer": "adafactor"},
}


def step_settings(**changed: Any) -> StepSettings:
    return StepSettings(**({"batch_size": 2, "seq_len": 16} | changed))


def built(config: PreTrainedConfig, rank: int | None, settings: StepSettings) -> nn.Module:
    model = meta_step_model(config, settings)
    return model.requires_grad_(True) if rank is None else adapt(model, rank, "all-linear", settings)


def fake_trace(
    config: PreTrainedConfig, rank: int | None, settings: StepSettings, *, cuda: bool = False, meta: bool = False
) -> Trace:
    model = built(config, rank, settings)
    with fake_tensors(cuda=cuda, meta=meta) as device:
        give_storage(model, device)
        return trace_step(model, settings, device)


def real_trace(config: PreTrainedConfig, rank: int | None, settings: StepSettings) -> Trace:
    model = built(config, rank, settings)
    device = torch.device("cpu")
    give_storage(model, device)
    return trace_step(model, settings, device)


@pytest.mark.parametrize(
    ("changed", "rank"),
    # A quantised model is not trained in full.
    [(changed, rank) for changed in SETTINGS.values() for rank in (4, None) if rank or "quantize" not in changed],
)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_fake_tensors_take_the_bytes_of_real_ones(architecture: str, changed: dict[str, Any], rank: int | None) -> None:
    settings, config = step_settings(**changed), tiny_config(architecture)
    # Not every storage is the same: on real tensors the model also asks whether anything is padded.
    assert fake_trace(config, rank, settings).peak() == real_trace(config, rank, settings).peak()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_simulated_to_the_byte(architecture: str) -> None:
    config = tiny_config(architecture)
    assert fake_trace(config, 4, step_settings()).peak() == real_trace(config, 4, step_settings()).peak()


@pytest.mark.parametrize(
    "changed", [{"dtype": "float32"}, {"dtype": "float16"}, {"dtype": "float32", "autocast": True}]
)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_experts_are_simulated_to_the_byte_in_every_dtype(changed: dict[str, Any], targets: Any) -> None:
    """torch's product of a mixture's experts refuses all but bfloat16 where tensors have no values."""
    config, settings = tiny_config("mixtral", intermediate_size=128), step_settings(seq_len=64, **changed)

    def peak(*, fake: bool) -> Any:
        model = adapt(meta_step_model(config, settings), 4, targets, settings)
        with fake_tensors(cuda=False) if fake else nullcontext(torch.device("cpu")) as device:
            give_storage(model, device)
            return trace_step(model, settings, device).peak()

    assert peak(fake=True) == peak(fake=False)


@pytest.mark.parametrize("changed", [SETTINGS[name] for name in SETTINGS if name != "autocast"])
def test_meta_tensors_take_the_bytes_of_fake_ones(changed: dict[str, Any]) -> None:
    settings, config = step_settings(**changed), tiny_config("llama")
    fake, meta = (fake_trace(config, 4, settings, cuda=True, meta=meta) for meta in (False, True))
    assert fake.peak() == meta.peak()


def test_a_real_step_learns_from_the_batch_that_is_simulated() -> None:
    """That the step is one: gradients reach every adapter, and the optimiser moves it."""
    settings = step_settings(dtype="float32", quantize="none")
    model = built(tiny_config("llama"), 4, settings)
    give_storage(model, torch.device("cpu"))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    before = {name: parameter.clone() for name, parameter in trained.items()}
    trace_step(model, settings, torch.device("cpu"))
    assert all(not torch.equal(parameter, before[name]) for name, parameter in trained.items())


def test_parts_are_what_they_are_called() -> None:
    settings = step_settings(dtype="bfloat16", adapter_dtype="float32")
    config = tiny_config("llama")
    parts = fake_trace(config, 4, settings).peak().bytes_by_kind
    model = built(config, 4, settings)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert parts["adapter_weights"] == 4 * trained
    assert parts["base_weights"] == sum(2 * parameter.numel() for parameter in frozen.values()) + buffers
    steps = 4 * sum(parameter.requires_grad for parameter in model.parameters())
    assert parts["optimizer_states"] == 8 * trained + steps  # and each parameter's count of steps


def test_the_peak_is_at_a_line_of_the_models_code() -> None:
    long = fake_trace(tiny_config("llama"), 4, step_settings(seq_len=64, attention="eager"))
    assert "modeling_llama.py:" in long.peak().place or "loss_utils.py:" in long.peak().place


def test_on_cuda_grouped_queries_are_repeated_only_where_there_is_a_mask() -> None:
    def activations(*, padding: bool, heads: int) -> int:
        config = tiny_config("llama", num_key_value_heads=heads, num_hidden_layers=4)
        settings = step_settings(seq_len=64, padding=padding)
        return fake_trace(config, 4, settings, cuda=True).peak().bytes_by_kind["activations"]

    # Keys and values of 4 heads in the place of 1: two tensors a layer of 2 rows, 64 tokens, 3 heads of width 8.
    repeated = 4 * 2 * (2 * 64 * 3 * 8) * 2
    without, with_mask = activations(padding=False, heads=1), activations(padding=True, heads=1)
    assert with_mask - without >= repeated


def test_attention_is_put_back_after_the_simulation() -> None:
    before = nn.functional.scaled_dot_product_attention
    with cuda_kernels():
        assert nn.functional.scaled_dot_product_attention is not before
    assert nn.functional.scaled_dot_product_attention is before


CALLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "layer_norm": lambda x: nn.functional.layer_norm(x, x.shape[-1:], x[0], x[0]),
    "softmax.int": lambda x: nn.functional.softmax(x, -1),
    "pow.Tensor_Scalar": lambda x: torch.pow(x, 3.0),
    "gelu": nn.functional.gelu,
}


@pytest.mark.parametrize("name", CALLS)
def test_autocast_computes_in_float32_what_cudas_does(name: str) -> None:
    """torch's own table of what CUDA's autocast is for says which; a CPU's leaves all four as they come."""
    x = torch.zeros(2, 4, dtype=torch.bfloat16)
    raised = torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA")  # type: ignore[attr-defined]
    assert raised == (name != "gelu")
    with torch.autocast("cpu", torch.bfloat16):
        assert CALLS[name](x).dtype == torch.bfloat16
    with cuda_kernels():
        assert CALLS[name](x).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert CALLS[name](x).dtype == (torch.float32 if raised else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert CALLS[name](x).dtype == torch.bfloat16


def test_under_autocast_on_cuda_a_layer_norm_keeps_its_input_in_float32() -> None:
    config, settings = tiny_config("bert", num_hidden_layers=4), step_settings(seq_len=64, autocast=True)
    of_cuda, of_cpu = (fake_trace(config, 4, settings, cuda=cuda).peak().bytes_by_kind for cuda in (True, False))
    # Two norms a layer of 2 rows, 64 tokens and 32 features, 4 bytes in the place of 2; dropout and attention take less
    # on CUDA, with autocast or without.
    without = dataclasses.replace(settings, autocast=False)
    spared = [fake_trace(config, 4, without, cuda=cuda).peak().bytes_by_kind["activations"] for cuda in (True, False)]
    kept = (of_cuda["activations"] - of_cpu["activations"]) - (spared[0] - spared[1])
    assert kept >= 4 * 2 * (2 * 64 * 32) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_8_bit_states_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    """Two states of a byte each and a float32 for 256 elements; below 4096 elements float32 states."""
    large, small = nn.Parameter(torch.zeros(64, 64, dtype=dtype)), nn.Parameter(torch.zeros(63, 65, dtype=dtype))
    optimizer = make_optimizer("adamw-8bit", [large, small])
    for parameter in (large, small):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    def held(parameter: nn.Parameter) -> int:
        return sum(state.numel() * state.element_size() for state in optimizer.state[parameter].values())

    assert held(large) == 2 * 4096 + 2 * 4 * 16
    assert held(small) == 2 * 4 * 4095
