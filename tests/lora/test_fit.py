"""Layers that a pack cannot stand in for, in models as transformers builds them and in layers made for the purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import match_targets
from rankwise.errors import UserError
from rankwise.lora.attach import attached
from rankwise.lora.fit import unfit_targets
from rankwise.lora.packable import packable
from rankwise.records import Trial
from tests.models import save_model


def loaded(directory: Path, architecture: str, **changed: Any) -> BaseModel:
    save_model(directory, architecture, AutoModelForCausalLM.from_config, **changed)
    return load_base(directory, num_labels=None, dtype="float32", device="cpu")


def unfit(base: BaseModel) -> dict[str, str]:
    return unfit_targets(base, match_targets(base.model, "all-linear", trained=base.trained_modules))


class Scaled(nn.Linear):
    """As layers of eight-bit floats are: what they compute is not in their weight alone."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Router(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits, logits.argmax(dim=-1)


class Unbiased(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


class Rewritten(nn.Linear):
    """As Falcon's: the same product in other words."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def replaced(base: BaseModel, name: str, kind: Callable[..., nn.Linear]) -> None:
    layer = base.model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    other = kind(layer.in_features, layer.out_features, bias=False)
    other.weight = layer.weight
    base.model.set_submodule(name, other)


@pytest.mark.parametrize(("kind", "fits"), [(Scaled, False), (Rewritten, True)])
def test_a_layer_that_computes_more_than_its_product_is_named(
    kind: Callable[..., nn.Linear], fits: bool, tmp_path: Path
) -> None:
    base, name = loaded(tmp_path, "llama"), "model.layers.1.mlp.up_proj"
    assert unfit(base) == {}
    replaced(base, name, kind)
    alike = [f"model.layers.{number}.mlp.up_proj" for number in range(2)]
    assert unfit(base) == ({} if fits else dict.fromkeys(alike, "a Scaled computes more than its weight's product"))


def test_a_layer_that_returns_more_than_its_product_is_named(tmp_path: Path) -> None:
    base, name = loaded(tmp_path, "llama"), "model.layers.0.mlp.router"
    mlp: Any = base.model.get_submodule("model.layers.0.mlp")
    mlp.router = Router(32, 4)
    mlp.register_forward_pre_hook(lambda module, inputs: (module.router(inputs[0]), inputs)[1])
    assert unfit(base) == {name: "a Router computes more than its weight's product"}


def test_a_layer_that_no_text_reaches_is_named_and_one_of_many_experts_is_not(tmp_path: Path) -> None:
    base = loaded(tmp_path, "llama")
    mlp: Any = base.model.get_submodule("model.layers.0.mlp")
    mlp.vision = nn.Linear(32, 8)
    mlp.experts = nn.ModuleList(nn.Linear(32, 8) for _ in range(3))
    mlp.register_forward_pre_hook(lambda module, inputs: (module.experts[1](inputs[0]), inputs)[1])
    assert unfit(base) == {"model.layers.0.mlp.vision": "the model does not call it on texts"}


def test_what_one_expert_computes_the_others_do_that_were_not_called(tmp_path: Path) -> None:
    base = loaded(tmp_path, "llama")
    mlp: Any = base.model.get_submodule("model.layers.0.mlp")
    mlp.experts = nn.ModuleList(Scaled(32, 8) for _ in range(3))
    mlp.register_forward_pre_hook(lambda module, inputs: (module.experts[1](inputs[0]), inputs)[1])
    assert list(unfit(base)) == [f"model.layers.0.mlp.experts.{number}" for number in range(3)]


def test_a_number_within_a_name_tells_layers_apart(tmp_path: Path) -> None:
    base = loaded(tmp_path, "llama")
    mlp: Any = base.model.get_submodule("model.layers.0.mlp")
    mlp.fc1, mlp.fc2 = nn.Linear(32, 8), nn.Linear(32, 8)
    mlp.register_forward_pre_hook(lambda module, inputs: (module.fc1(inputs[0]), inputs)[1])
    assert list(unfit(base)) == ["model.layers.0.mlp.fc2"]


def test_a_layer_that_is_called_by_keyword_is_named(tmp_path: Path) -> None:
    base = loaded(tmp_path, "llama")
    mlp: Any = base.model.get_submodule("model.layers.0.mlp")
    mlp.gate = nn.Linear(32, 8)
    mlp.register_forward_pre_hook(lambda module, inputs: (module.gate(input=inputs[0]), inputs)[1])
    assert unfit(base) == {"model.layers.0.mlp.gate": "the model calls it in a way of its own"}


def test_a_layer_without_a_bias_of_any_kind_is_named(tmp_path: Path) -> None:
    base, name = loaded(tmp_path, "llama"), "model.layers.1.mlp.up_proj"
    replaced(base, name, Unbiased)
    del base.model.get_submodule(name)._parameters["bias"]
    assert name in unfit(base)


def test_a_model_of_few_positions_is_tried_on_as_few_tokens(tmp_path: Path) -> None:
    assert unfit(loaded(tmp_path, "gpt2", n_positions=8)) == {}
    base = load_base(save_model(tmp_path / "bert", "bert", max_position_embeddings=4), num_labels=2, device="cpu")
    assert unfit(base) == {}


def test_trials_are_apart_where_texts_choose_the_layers(tmp_path: Path) -> None:
    """Experts that are modules see rows of several trials, in an order of their own."""
    base = loaded(tmp_path, "llama")
    mlp: Any = base.model.get_submodule("model.layers.0.mlp")
    mlp.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def route(module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        flat = inputs[0].reshape(-1, 32)
        chosen = flat[:, 0] > flat[:, 0].median()
        routed = torch.empty_like(flat)
        routed[chosen], routed[~chosen] = module.experts[0](flat[chosen]), module.experts[1](flat[~chosen])
        return output + routed.view_as(output)

    mlp.register_forward_hook(route)
    targets = match_targets(base.model, "all-linear")
    assert unfit(base) == {}
    assert not packable(base, targets)


def test_a_layer_whose_weight_alone_is_read_is_not_called(tmp_path: Path) -> None:
    """Jamba hands the weight of `dt_proj` to its scan: an adapter on it would never train."""
    base = loaded(tmp_path, "jamba")
    assert unfit(base) == {"model.layers.0.mamba.dt_proj": "the model does not call it on texts"}


def test_what_reads_the_weight_of_an_adapted_layer_finds_the_frozen_one(tmp_path: Path) -> None:
    base = loaded(tmp_path, "llama")
    targets = match_targets(base.model, ["q_proj"])
    frozen: Any = base.model.get_submodule(targets[0].name)
    with attached(base, [Trial(2, 4.0, False, 1e-3, 0)], targets):
        packed: Any = base.model.get_submodule(targets[0].name)
        assert packed is not frozen
        assert packed.weight is frozen.weight
        assert packed.bias is frozen.bias is None


def test_what_shakes_a_mixture_s_routers_is_off(tmp_path: Path) -> None:
    base = loaded(tmp_path, "mixtral", router_jitter_noise=0.5)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, base.model(input_ids=ids).logits)


def test_a_model_that_draws_while_it_trains_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def noisy(self: LlamaMLP, x: Tensor) -> Tensor:
        y: Tensor = forward(self, x)
        return y + torch.randn_like(y) if self.training else y

    monkeypatch.setattr(LlamaMLP, "forward", noisy)
    with pytest.raises(UserError, match="computes something else while it trains"):
        loaded(tmp_path, "llama")
