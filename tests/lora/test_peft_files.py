"""An adapter on disk that came from elsewhere: what cannot be understood is listed, once and not at length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rankwise.errors import UserError
from rankwise.lora.peft_files import find_adapter


def saved(place: Path, more: dict[str, Any], *strange: str) -> Path:
    """An adapter of rank 2 on one layer, with more settings, and with tensors that have no place in it."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"]}
    (place / "adapter_config.json").write_text(json.dumps(config | more))
    tensors = {f"base_model.model.query.lora_{name}.weight": torch.ones(shape) for name, shape in _SHAPES.items()}
    save_file(tensors | {name: torch.ones(1) for name in strange}, place / "adapter_model.safetensors")
    return place


_SHAPES = {"A": (2, 3), "B": (3, 2)}


@pytest.mark.parametrize("value", [2, 4])
def test_a_rank_of_its_own_is_a_whole_number(value: int, tmp_path: Path) -> None:
    (module,) = find_adapter(saved(tmp_path, {"rank_pattern": {"key": value}})).modules
    assert (module.rank, module.scaling) == (2, 1)


@pytest.mark.parametrize("value", [True, 2.5, "2", None])
def test_a_rank_of_its_own_that_is_none_is_told(value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rank_pattern is no mapping of module names to whole numbers"):
        find_adapter(saved(tmp_path, {"rank_pattern": {"query": value}}))


def test_an_alpha_of_its_own_may_be_a_fraction(tmp_path: Path) -> None:
    (module,) = find_adapter(saved(tmp_path, {"alpha_pattern": {"query": 2.5}})).modules
    assert module.scaling == 1.25


@pytest.mark.parametrize(
    "more",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["model.embed_tokens"]},
        {"target_modules": r".*(q_proj|embed_tokens)"},
        {"target_modules": "(.*)*q_proj"},  # not matched: it could take for ever
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": "lm_head"},
        {"modules_to_save": {"lm_head": 1}},
    ],
)
def test_embeddings_that_are_tied_are_refused(more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ensure_weight_tying is true"):
        find_adapter(saved(tmp_path, {"ensure_weight_tying": True} | more))


@pytest.mark.parametrize(
    "more",
    [{}, {"target_modules": r".*\.(q|v)_proj"}, {"target_modules": "all-linear"}, {"modules_to_save": ["score"]}],
)
def test_tying_that_ties_nothing_is_no_matter(more: dict[str, Any], tmp_path: Path) -> None:
    assert len(find_adapter(saved(tmp_path, {"ensure_weight_tying": True} | more)).modules) == 1


@pytest.mark.parametrize(("count", "end"), [(4, "adapter"), (5, "; and 1 more"), (6, "; and 2 more")])
def test_four_things_that_are_wrong_are_named_and_the_others_counted(count: int, end: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        find_adapter(saved(tmp_path, {}, *(f"{number}.lora_magnitude" for number in range(count))))
    assert str(error.value).count("has no place in a LoRA adapter") == 4
    assert str(error.value).endswith(end)


def test_a_layer_of_one_input_and_one_output_has_an_adapter(tmp_path: Path) -> None:
    saved(tmp_path, {"r": 1})
    tensors = {f"base_model.model.query.lora_{name}.weight": torch.ones(1, 1) for name in "AB"}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (module,) = find_adapter(tmp_path).modules
    assert (module.rank, module.d_in, module.d_out, module.scaling) == (1, 1, 1, 2)
