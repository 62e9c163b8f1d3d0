"""The outlines that are shipped against the models that transformers builds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

from rankwise.base.catalogue import catalogue, entry_config
from rankwise.base.outline import Outline, OutlinedModule, Sizes, read_outline, shipped_outline
from rankwise.base.shapes import head_modules, linear_layers, match_targets, meta_model, outline_of
from rankwise.errors import UserError
from rankwise.memory.estimate import estimate_ranks
from tests.models import ARCHITECTURES, tiny_config
from tools.outlines import SHIPPED, document_of, has_experts, live_outline

SMALLEST = {
    entry.config["model_type"]: entry.name for entry in sorted(catalogue().values(), key=lambda entry: -entry.params)
}.values()
every_model = pytest.mark.parametrize(
    "name", [name if name in SMALLEST else pytest.param(name, marks=pytest.mark.slow) for name in catalogue()]
)
SIZES = Sizes(causal=True, hidden_size=1, vocabulary=1, positions=None)


@every_model
def test_what_is_shipped_is_the_model_that_transformers_builds(name: str) -> None:
    """Else `python -m tools.outlines` has to be run again."""
    live, sizes = live_outline(catalogue()[name])
    assert shipped_outline(name) == (None if has_experts(live) else (live, sizes))


def test_an_outline_is_of_a_model_of_the_catalogue() -> None:
    outlined = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert len(outlined) > 90
    assert set(outlined) <= set(catalogue())
    assert shipped_outline("no such model") is None


@pytest.mark.parametrize("name", ["smollm2-135m", "gpt2", "distilbert-base-uncased", "olmoe-1b-7b"])
@pytest.mark.parametrize("targets", ["all-linear", ["qurey"]], ids=str)
def test_the_formula_says_the_same_of_a_name_and_of_its_configuration(name: str, targets: Any) -> None:
    def answer(model: Any) -> Any:
        try:
            found = estimate_ranks(model, [4, 64], targets, gpu_bytes=24 << 30, method="formula").to_dict()
        except UserError as error:
            return str(error)
        return {key: value for key, value in found.items() if key not in ("model", "seconds")}

    assert answer(name) == answer(entry_config(catalogue()[name]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_outline_has_the_parameters_of_the_model(architecture: str) -> None:
    model = meta_model(tiny_config(architecture))
    outline = outline_of(model)
    assert list(outline.parameters()) == [(name, tuple(each.shape)) for name, each in model.named_parameters()]
    assert [(each.name, each.kind) for each in outline.modules] == [
        (name, type(module).__name__) for name, module in model.named_modules()
    ]
    assert outline_of(outline) is outline
    assert linear_layers(outline) == linear_layers(model)
    assert head_modules(outline) == head_modules(model)


def test_a_tied_parameter_is_counted_once_and_its_layer_is_still_linear() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=12, vocab_size=10, n_positions=8))
    outline = outline_of(model)
    assert (outline.output, model.lm_head.weight is model.transformer.wte.weight) == ("lm_head", True)
    assert outline.modules[-1] == OutlinedModule("lm_head", "Linear", {}, (12, 10))
    assert dict(outline.parameters())["transformer.wte.weight"] == (10, 12)
    assert [layer.name for layer in match_targets(outline, ["lm_head"])] == ["lm_head"]
    assert "lm_head" not in [layer.name for layer in match_targets(outline, "all-linear")]


def test_any_module_has_an_outline() -> None:
    assert outline_of(nn.Sequential(nn.Linear(2, 3, bias=False))) == Outline(
        (OutlinedModule("", "Sequential", {}), OutlinedModule("0", "Linear", {"weight": (3, 2)}, (2, 3)))
    )


nodes = st.recursive(
    st.tuples(st.sampled_from("AB"), st.sampled_from([None, (1, 2)]), st.just({})),
    lambda children: st.tuples(
        st.sampled_from("AB"),
        st.none(),
        st.dictionaries(st.sampled_from(["0", "1", "2", "3", "9", "10", "q", "k"]), children, max_size=6),
    ),
    max_leaves=12,
)


@given(nodes)
def test_a_folded_outline_unfolds_to_what_it_was(node: Any) -> None:
    def modules(name: str, node: Any) -> Iterator[OutlinedModule]:
        kind, linear, children = node
        yield OutlinedModule(name, kind, {"weight": linear} if linear else {}, linear)
        for key, child in children.items():
            yield from modules(f"{name}.{key}" if name else key, child)

    outline = Outline(tuple(modules("", node)), output="q")
    assert read_outline(json.loads(json.dumps(document_of(outline, SIZES)))) == (outline, SIZES)


def test_layers_that_are_alike_are_written_once() -> None:
    alike = outline_of(nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)), nn.Linear(2, 3)))
    children = document_of(alike, SIZES)["modules"][3]
    assert list(children) == ["0..11", "12"]
