from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise import inspect_adapter
from rankwise.records import AdapterSpectrum
from tests.spectrum.adapters import rewrite, saved_adapter, updates, weights_in

PATTERNS = {"rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"o_proj": 3, "q_proj": 5}}


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"lora_alpha": 5}),
        ("llama", {"use_rslora": True, **PATTERNS}),
        ("gpt2", {"lora_alpha": -3}),
        ("bert", {"target_modules": ["query", "word_embeddings"], "lora_alpha": 16}),
    ],
)
def test_singular_values_are_those_of_what_peft_adds_to_the_weights(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = saved_adapter(tmp_path, architecture, **settings)
    expected = updates(model)
    spectrum = inspect_adapter(tmp_path)
    assert {module.name for module in spectrum.modules} == set(expected)
    for module in spectrum.modules:
        layer = model.get_base_model().get_submodule(module.name)
        assert (module.rank, module.alpha) == (layer.r["default"], layer.lora_alpha["default"])
        assert module.scaling == pytest.approx(layer.scaling["default"])
        values = torch.linalg.svdvals(expected[module.name].double())
        count = len(module.singular_values)
        assert count == min(module.rank, module.d_in, module.d_out)
        assert torch.allclose(torch.tensor(module.singular_values).double(), values[:count], rtol=0, atol=1e-5)
        assert module.energy[0] == 0
        assert module.energy[1] == pytest.approx(float(values[0] ** 2 / (values**2).sum()), abs=1e-5)


def test_modules_are_summed_up_by_kind_and_by_layer(tmp_path: Path) -> None:
    saved_adapter(tmp_path, r=6, rank_pattern={"q_proj": 3})
    spectrum = inspect_adapter(tmp_path)
    assert [kind.name for kind in spectrum.kinds] == sorted(
        [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    )
    assert [(layer.name, layer.modules) for layer in spectrum.layers] == [("layer 0", 7), ("layer 1", 7)]
    assert (spectrum.overall.modules, spectrum.overall.rank_low, spectrum.overall.rank_high) == (14, 3, 6)
    assert {kind.modules for kind in spectrum.kinds} == {2}
    squares = [[value**2 for value in module.singular_values] for module in spectrum.modules]
    for k, share in enumerate(spectrum.overall.energy):
        assert share == pytest.approx(sum(sum(each[:k]) for each in squares) / sum(map(sum, squares)))
    q = next(kind for kind in spectrum.kinds if kind.name == "self_attn.q_proj")
    ours = [module for module in spectrum.modules if module.kind == q.name]
    assert q.stable_rank == pytest.approx(sum(module.stable_rank for module in ours) / 2)
    assert q.used == pytest.approx(sum(module.used for module in ours) / 2)


@pytest.mark.parametrize("planted", [1, 2, 4])
def test_a_rank_that_is_in_the_weights_shows(planted: int, tmp_path: Path) -> None:
    """Whatever basis A and B are written in."""
    saved_adapter(tmp_path, r=6)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))[0]
    tensors = weights_in(tmp_path)
    for name, tensor in tensors.items():
        if name.endswith("lora_B.weight"):
            flat = torch.linalg.qr(torch.randn(len(tensor), planted, generator=torch.Generator().manual_seed(3)))[0]
            tensors[name] = (torch.cat([flat, torch.zeros(len(tensor), 6 - planted)], 1) @ turn).contiguous()
        if name.endswith("lora_A.weight"):
            tensors[name] = torch.linalg.qr(tensor.T)[0].T.contiguous()
    rewrite(tmp_path, tensors)
    spectrum = inspect_adapter(tmp_path)
    assert spectrum.overall.rank_99 == planted
    assert spectrum.overall.used == pytest.approx(planted / 6)
    assert spectrum.overall.entropy_rank == pytest.approx(planted, rel=1e-4)
    assert spectrum.overall.stable_rank == pytest.approx(planted, rel=1e-4)
    assert spectrum.overall.gaps == (planted,) * 14


def test_an_adapter_that_was_never_trained_uses_no_rank(tmp_path: Path) -> None:
    saved_adapter(tmp_path)
    tensors = weights_in(tmp_path)
    rewrite(tmp_path, {name: 0 * tensor if "lora_B" in name else tensor for name, tensor in tensors.items()})
    overall = inspect_adapter(tmp_path).overall
    assert (overall.stable_rank, overall.entropy_rank, overall.used, overall.rank_99) == (0, 0, 0, 0)
    assert overall.gaps == ()
    assert set(overall.energy) == {1}


@pytest.mark.parametrize(
    ("settings", "trap"),
    [
        ({"r": 32}, True),  # alpha is left at PEFT's default
        ({"r": 32, "use_rslora": True}, False),
        ({"r": 16}, False),
        ({"r": 32, "lora_alpha": 4}, False),  # somebody chose that
        ({"r": 32, "lora_alpha": 64}, False),
    ],
)
def test_the_default_alpha_beside_a_large_rank_is_named(settings: dict[str, Any], trap: bool, tmp_path: Path) -> None:
    saved_adapter(tmp_path, target_modules=["q_proj"], **settings)
    spectrum = inspect_adapter(tmp_path)
    assert spectrum.default_alpha_trap == trap
    scaling = spectrum.alpha / (math.sqrt(spectrum.rank) if spectrum.use_rslora else spectrum.rank)
    assert spectrum.scaling == pytest.approx(scaling)


def test_a_run_means_its_adapter_and_the_document_is_json(tmp_path: Path) -> None:
    saved_adapter(tmp_path / "adapter")
    spectrum = inspect_adapter(str(tmp_path))
    assert isinstance(spectrum, AdapterSpectrum)
    assert spectrum.adapter == tmp_path / "adapter"
    document = json.loads(json.dumps(spectrum.to_dict(), allow_nan=False))
    assert document["adapter"] == str(tmp_path / "adapter")
    assert document["modules"][3]["singular_values"] == list(spectrum.modules[3].singular_values)
