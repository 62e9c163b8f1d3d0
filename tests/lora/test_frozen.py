from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from rankwise.base.load import load_base
from rankwise.base.model import Blocks
from rankwise.lora import frozen
from rankwise.lora.attach import attached
from rankwise.lora.frozen import FrozenLinear, frozen_linears, worth_blocks
from rankwise.records import Trial
from tests.lora.packs import targets_of
from tests.models import save_model


def linear(d_in: int, d_out: int, *, bias: bool = True) -> nn.Linear:
    return nn.Linear(d_in, d_out, bias=bias, dtype=torch.bfloat16).requires_grad_(False)


def conv1d(d_in: int, d_out: int) -> Conv1D:
    layer = Conv1D(d_out, d_in).to(torch.bfloat16).requires_grad_(False)
    layer.bias.copy_(torch.randn(d_out))
    return layer


def in_blocks(layer: nn.Module) -> FrozenLinear:
    kept: dict[nn.Module, Blocks] = {}
    (found,) = frozen_linears([layer], kept)
    assert list(kept) == [layer]
    return found


# Asked of torch, not of `worth_blocks`: that one may be wrong.
SUPPORTED = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_blocks = pytest.mark.skipif(not SUPPORTED, reason="oneDNN has no bfloat16 products here")


@needs_blocks
@pytest.mark.parametrize(
    "layer", [linear(48, 80), linear(80, 48, bias=False), conv1d(48, 80)], ids=["linear", "without bias", "Conv1D"]
)
@pytest.mark.parametrize("rows", [1, 37])
def test_products_in_blocks_are_the_plain_products_rounded_once(layer: nn.Module, rows: int) -> None:
    stored = layer.weight.float() if isinstance(layer, nn.Linear) else layer.weight.float().t()
    x = torch.randn(rows, stored.shape[1], dtype=torch.bfloat16)
    gradients = torch.randn(rows, stored.shape[0], dtype=torch.bfloat16)
    bias = None if layer.bias is None else layer.bias.float()
    found = in_blocks(layer)
    exact, exact_gradients = functional.linear(x.float(), stored, bias), gradients.float() @ stored
    assert found(x).dtype == torch.bfloat16
    torch.testing.assert_close(found(x).float(), exact, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(found.input_gradients(gradients).float(), exact_gradients, rtol=2**-8, atol=1e-5)


@needs_blocks
def test_a_row_is_multiplied_alike_whatever_the_others_hold() -> None:
    x, found = torch.randn(64, 48, dtype=torch.bfloat16), in_blocks(linear(48, 80))
    before = found(x)
    x[32:] = float("nan")
    assert torch.equal(found(x)[:32], before[:32])


@needs_blocks
def test_inputs_of_another_dtype_are_multiplied_plainly() -> None:
    layer, x = linear(48, 80, bias=False), torch.randn(3, 48)
    torch.testing.assert_close(in_blocks(layer)(x), functional.linear(x, layer.weight.float()))


@needs_blocks
def test_weights_have_blocks_where_they_are_in_bfloat16_and_their_copies_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_MOST_BYTES", 2 * 2 * 16)
    assert worth_blocks([linear(4, 4)])
    assert not worth_blocks([linear(4, 4).float()])
    assert not worth_blocks([linear(4, 4), linear(1, 1)])


@needs_blocks
def test_a_weight_is_laid_out_once_for_all_packs_of_a_base_model() -> None:
    layers: list[nn.Module] = [linear(48, 80), conv1d(80, 48)]
    kept: dict[nn.Module, Blocks] = {}
    frozen_linears(layers, kept)
    first = dict(kept)
    frozen_linears(layers, kept)
    assert first.keys() == set(layers)
    assert all(kept[layer] is blocks for layer, blocks in first.items())


@needs_blocks
def test_a_base_model_keeps_its_copies_and_counts_them(tmp_path: Path) -> None:
    save_model(tmp_path, "bert")
    base = load_base(tmp_path, num_labels=2, device="cpu", dtype="bfloat16")
    targets, before = targets_of(base), base.bytes
    for seed in (0, 1):
        with attached(base, [Trial(2, 2.0, False, 1e-3, seed)], targets):
            assert base.blocks_bytes == 2 * sum(2 * target.weights for target in targets)
    assert base.bytes == before
