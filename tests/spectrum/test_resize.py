from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.conversion import convert_to_lora
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from rankwise import ResizedAdapter, UserError, inspect_adapter, resize_adapter
from tests.lora.packs import some_batch
from tests.models import peft_model, tiny_config
from tests.spectrum.adapters import (
    loaded,
    logits,
    reconfigure,
    rewrite,
    saved_adapter,
    saved_adapter_of,
    settings_in,
    tiny_model,
    updates,
    weights_in,
)

# The last key matches modules whose names end in it; the first that matches counts.
PATTERNS = {
    "rank_pattern": {"^model.layers.0.self_attn.q_proj": 9, "q_proj": 3, "layers.1.mlp.up_proj": 2},
    "alpha_pattern": {"o_proj": 3, "q_proj": 5},
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"lora_alpha": 16}),
    ("llama", {"lora_alpha": 7, "use_rslora": True}),
    ("llama", PATTERNS),
    ("llama", {"use_rslora": True, **PATTERNS}),
    ("llama", {"r": 20}),  # above the 16 outputs of k_proj
    ("gpt2", {"lora_alpha": 12}),
    ("bert", {"modules_to_save": ["classifier", "pooler"], "target_modules": ["query", "output.dense"]}),
    ("bert", {"target_modules": ["value", "word_embeddings"]}),
    ("bert", {"target_modules": ["value"], "trainable_token_indices": {"word_embeddings": [5, 7]}}),
]
each_case = pytest.mark.parametrize(("architecture", "settings"), CASES)


@each_case
def test_resizing_to_the_same_rank_changes_no_logit(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    before = logits(saved_adapter(tmp_path / "it", architecture, **settings))
    rank = max(module.rank for module in inspect_adapter(tmp_path / "it").modules)
    resized = resize_adapter(tmp_path / "it", tmp_path / "out", rank=rank)
    after = logits(loaded(tmp_path / "out", architecture))
    assert torch.allclose(before, after, rtol=0, atol=1e-5)
    plain = logits(saved_adapter(tmp_path / "other", architecture, **settings | {"lora_alpha": 100, "r": 1}))
    assert not torch.allclose(before, plain, atol=1e-2)  # the adapter matters
    assert resized.energy == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:lora with eva", "ignore:Currently, EVA", "ignore:You have requested `ensure_weight")
@pytest.mark.filterwarnings("ignore:the following layers were initialized with init_lora_weights=True")
def test_adapters_that_eva_initialised_are_plain_ones(tmp_path: Path) -> None:
    """EVA spreads ranks by what the layers' inputs explain, and leaves the base's weights alone."""
    base = tiny_model("llama")
    weights = {name: weight.clone() for name, weight in base.state_dict().items()}
    settings: dict[str, Any] = {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=2.0), "r": 4}
    model = peft_model(base, target_modules=["q_proj", "down_proj"], ensure_weight_tying=True, **settings)
    initialize_lora_eva_weights(model, [some_batch() for _ in range(4)], show_progress_bar=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(tmp_path / "it"))
    plain = model.eval().unload().state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.items())

    spectrum = inspect_adapter(tmp_path / "it")
    assert len({module.rank for module in spectrum.modules}) > 1
    before = updates(loaded(tmp_path / "it"))
    for module in spectrum.modules:
        values = torch.linalg.svdvals(before[module.name].double())[: module.rank]
        assert module.singular_values == pytest.approx(values.tolist(), abs=1e-5)
    resize_adapter(tmp_path / "it", tmp_path / "out", rank=max(module.rank for module in spectrum.modules))
    after = updates(loaded(tmp_path / "out"))
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-5) for name in before)


@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`, but no tied modules are added")
def test_tying_weights_matters_where_an_embedding_is_adapted(tmp_path: Path) -> None:
    """What PEFT makes of the setting on a model whose output layer is its embedding."""
    trained = {}
    for name, targets in (("plain", ["q_proj"]), ("embedding", ["q_proj", "embed_tokens"])):
        for tied in (True, False):
            base = AutoModelForCausalLM.from_config(tiny_config("llama", tie_word_embeddings=True))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
                settings = {"target_modules": targets, "ensure_weight_tying": tied, "task_type": "CAUSAL_LM"}
                model = saved_adapter_of(base, tmp_path / f"{name}{tied}", **settings)
            trained[name, tied] = {key for key, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert trained["plain", True] == trained["plain", False]
    assert trained["embedding", True] != trained["embedding", False]
    assert len(inspect_adapter(tmp_path / "plainTrue").modules) == 2
    with pytest.raises(UserError, match="ensure_weight_tying is true"):
        inspect_adapter(tmp_path / "embeddingTrue")


@each_case
@pytest.mark.parametrize("how", [{"rank": 2}, {"energy": 0.8}, {"energy": 0.8, "per_layer": True}])
def test_peft_computes_the_nearest_updates_at_the_scaling_that_there_was(
    architecture: str, settings: dict[str, Any], how: dict[str, Any], tmp_path: Path
) -> None:
    original = saved_adapter(tmp_path / "it", architecture, **settings)
    resized = resize_adapter(tmp_path / "it", tmp_path / "out", **how)
    smaller = loaded(tmp_path / "out", architecture)
    before, after = updates(original), updates(smaller)
    assert before.keys() == after.keys() == {module.name for module in resized.modules}
    for module in resized.modules:
        old, new = (model.get_base_model().get_submodule(module.name) for model in (original, smaller))
        assert isinstance(new, LoraLayer)
        assert (old.r["default"], new.r["default"]) == (module.rank_before, module.rank)
        assert new.lora_alpha["default"] == module.alpha
        assert new.scaling["default"] == pytest.approx(old.scaling["default"])
        values = torch.linalg.svdvals(before[module.name].double())
        lost = torch.linalg.norm(before[module.name] - after[module.name])
        assert float(lost) == pytest.approx(float(values[module.rank :].norm()), abs=1e-5)
        whole = float((values**2).sum())
        assert module.energy == pytest.approx(float((values[: module.rank] ** 2).sum()) / whole, abs=1e-5)
        if "per_layer" in how:
            assert module.energy >= 0.8 > float((values[: module.rank - 1] ** 2).sum()) / whole
        else:
            assert module.rank == min(max(module.rank for module in resized.modules), module.rank_before)
    kept = sum(float((delta**2).sum()) for delta in after.values()) / sum(float((d**2).sum()) for d in before.values())
    assert resized.energy == pytest.approx(kept, abs=1e-5)
    assert resized.params == sum(t.numel() for n, t in weights_in(tmp_path / "out").items() if ".lora_" in n)
    assert resized.params_before == sum(t.numel() for n, t in weights_in(tmp_path / "it").items() if ".lora_" in n)


def test_one_rank_for_all_is_the_smallest_that_keeps_the_energy(tmp_path: Path) -> None:
    saved_adapter(tmp_path / "it")
    resized = resize_adapter(tmp_path / "it", tmp_path / "out", energy=0.8)
    (rank,) = {module.rank for module in resized.modules}
    energy = inspect_adapter(tmp_path / "it").overall.energy
    assert energy[rank] >= 0.8 > energy[rank - 1]
    settings = settings_in(tmp_path / "out")
    assert (settings["r"], settings["rank_pattern"], settings["alpha_pattern"]) == (rank, {}, {})
    assert settings["lora_alpha"] == pytest.approx(8 * rank / 6)


@pytest.mark.parametrize("rank", [2, 0.7])
def test_it_is_what_pefts_own_conversion_gives(rank: float, tmp_path: Path) -> None:
    """PEFT converts by an SVD of each whole ΔW, and folds the scaling into A and B."""
    model = saved_adapter(tmp_path / "it", lora_alpha=20)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Converting a PEFT adapter to LoRA that is already")
        config, tensors = convert_to_lora(model, rank)
    how: dict[str, Any] = {"rank": rank} if rank == 2 else {"energy": rank, "per_layer": True}
    resized = resize_adapter(tmp_path / "it", tmp_path / "out", **how)
    ours = updates(loaded(tmp_path / "out"))
    theirs = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    for module in resized.modules:
        assert module.rank == config.rank_pattern.get(module.name, config.r)
        delta = theirs[f"{module.name}.lora_B.weight"] @ theirs[f"{module.name}.lora_A.weight"]
        assert torch.allclose(ours[module.name], delta, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_stay_and_what_is_not_loras_is_copied(dtype: torch.dtype, tmp_path: Path) -> None:
    saved_adapter(tmp_path / "it", "bert", modules_to_save=["classifier"], target_modules=["query"])
    before = {name: tensor.to(dtype) for name, tensor in weights_in(tmp_path / "it").items()}
    rewrite(tmp_path / "it", before)
    resize_adapter(tmp_path / "it", tmp_path / "out", rank=2)
    after = weights_in(tmp_path / "out")
    assert after.keys() == before.keys()
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    heads = [name for name in before if ".lora_" not in name]
    assert heads
    assert all(torch.equal(after[name], before[name]) for name in heads)


def test_an_update_of_nothing_keeps_rank_1(tmp_path: Path) -> None:
    saved_adapter(tmp_path / "it")
    tensors = weights_in(tmp_path / "it")
    rewrite(tmp_path / "it", {name: 0 * tensor if "lora_B" in name else tensor for name, tensor in tensors.items()})
    resized = resize_adapter(tmp_path / "it", tmp_path / "out", energy=0.9, per_layer=True)
    assert {module.rank for module in resized.modules} == {1}
    assert resized.energy == 1


def mixture_adapter(directory: Path, router: bool) -> None:
    """An adapter as transformers 4 left it, with experts by number."""
    config = tiny_config("mixtral")
    assert (config.hidden_size, config.intermediate_size, config.num_local_experts) == (32, 48, 4)
    sizes = {"w1": (32, 48), "w2": (48, 32), "w3": (32, 48)}
    experts = {f"experts.{expert}.{leaf}": size for expert in range(4) for leaf, size in sizes.items()}
    of_layer = {f"block_sparse_moe.{name}": size for name, size in experts.items()} | {"self_attn.q_proj": (32, 32)}
    if router:
        of_layer["block_sparse_moe.gate"] = (32, 4)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for layer, (name, (d_in, d_out)) in product(range(2), of_layer.items()):
        whole = f"base_model.model.model.layers.{layer}.{name}"
        tensors[f"{whole}.lora_A.weight"] = torch.randn(6, d_in, generator=generator)
        tensors[f"{whole}.lora_B.weight"] = torch.randn(d_out, 6, generator=generator)
    targets = ["q_proj", *sizes, *(["gate"] if router else [])]
    LoraConfig(r=6, lora_alpha=12, target_modules=targets).save_pretrained(str(directory))
    rewrite(directory, tensors)


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")  # PEFT's own
@pytest.mark.parametrize(
    ("router", "how", "said"),
    [
        (False, {"energy": 0.8, "per_layer": True}, r"leave per-layer out$"),
        # A router of four experts has four directions.
        (True, {"rank": 5}, r"^model\.layers\.\d\.block_sparse_moe\.gate would have rank 4 .* a rank that all have$"),
    ],
)
def test_experts_have_one_rank_since_peft_stacks_them(
    router: bool, how: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture_adapter(tmp_path / "it", router)
    before = logits(loaded(tmp_path / "it", "mixtral"))
    with pytest.raises(UserError, match=said):
        resize_adapter(tmp_path / "it", tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
    for rank in (4, 2):
        resize_adapter(tmp_path / "it", tmp_path / str(rank), rank=rank)
        assert not torch.allclose(before, logits(loaded(tmp_path / str(rank), "mixtral")), atol=1e-3)
    monkeypatch.setattr("rankwise.spectrum.resize._check_experts", lambda ranks, what_to_do: None)
    resize_adapter(tmp_path / "it", tmp_path / "out", **how)
    with pytest.raises(RuntimeError):
        loaded(tmp_path / "out", "mixtral")


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")
def test_resizing_a_mixture_to_its_own_rank_changes_no_logit(tmp_path: Path) -> None:
    mixture_adapter(tmp_path / "it", router=False)
    resize_adapter(tmp_path / "it", tmp_path / "out", rank=6)
    before, after = (logits(loaded(tmp_path / name, "mixtral")) for name in ("it", "out"))
    assert torch.allclose(before, after, rtol=0, atol=1e-5)
    assert not torch.allclose(before, logits_of_base("mixtral"), atol=1e-2)


def logits_of_base(architecture: str) -> Tensor:
    with torch.no_grad():
        return tiny_model(architecture)(**some_batch()).logits


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = weights_in(directory)
    change(tensors)
    rewrite(directory, tensors)


def truncate(directory: Path) -> None:
    file = directory / SAFETENSORS_WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:-100])


def pickle(directory: Path) -> None:
    torch.save(weights_in(directory), directory / "adapter_model.bin")
    (directory / SAFETENSORS_WEIGHTS_NAME).unlink()


UP = "base_model.model.model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda it: (it / "adapter_config.json").unlink(), "is not an adapter: it has no adapter_config.json"),
        (lambda it: (it / "adapter_config.json").write_text("{"), "is not JSON"),
        (lambda it: reconfigure(it, r=None), "not the configuration of a LoRA adapter"),
        (lambda it: reconfigure(it, peft_type="ADALORA"), 'peft_type is "ADALORA"'),
        (lambda it: reconfigure(it, use_dora=True), "use_dora is true"),
        (lambda it: reconfigure(it, bias="all", lora_bias=True), 'bias is "all"; lora_bias is true'),
        (lambda it: reconfigure(it, target_parameters=["experts.up"]), 'target_parameters is ["experts.up"]'),
        (lambda it: reconfigure(it, init_lora_weights="pissa"), "changes the base weights"),
        (lambda it: reconfigure(it, rank_pattern=[4]), "rank_pattern is no mapping"),
        (lambda it: reconfigure(it, alpha_pattern={"(": 4}), "alpha_pattern has a key that is no regular expression"),
        (lambda it: reconfigure(it, r=4), "which are not of the rank 4 in adapter_config.json"),
        (truncate, "could not be read"),
        (pickle, "only pickled ones in adapter_model.bin, which can run code: convert them"),
        (lambda it: (it / SAFETENSORS_WEIGHTS_NAME).unlink(), "no weights in adapter_model.safetensors"),
        (lambda it: change_weights(it, lambda t: t.pop(f"{UP}.lora_A.weight")), "layers.0.mlp.up_proj has no lora_A"),
        (lambda it: change_weights(it, lambda t: t.pop(f"{UP}.lora_B.weight")), "layers.0.mlp.up_proj has no lora_B"),
        (lambda it: rewrite(it, {"score": torch.ones(2)}), "no pair of tensors lora_A and lora_B"),
        (
            lambda it: change_weights(it, lambda t: t.update({f"{UP}.lora_magnitude_vector": torch.ones(2)})),
            "lora_magnitude_vector has no place in a LoRA adapter",
        ),
        (
            lambda it: change_weights(it, lambda t: t[f"{UP}.lora_B.weight"].fill_(float("nan"))),
            "layers.0.mlp.up_proj has weights that are not finite",
        ),
        (
            lambda it: change_weights(it, lambda t: t.update({f"{UP}.lora_A.weight": torch.ones(6, 3, 2, 2)})),
            "is no linear layer or embedding",
        ),
    ],
)
def test_what_is_no_such_adapter_is_said_in_one_line(
    damage: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    saved_adapter(tmp_path / "it")
    damage(tmp_path / "it")
    for use in (inspect_adapter, lambda it: resize_adapter(it, tmp_path / "out", rank=2)):
        with pytest.raises(UserError) as error:
            use(tmp_path / "it")
        message = str(error.value)
        assert said in message
        assert str(tmp_path / "it") in message
        assert message.isprintable()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"rank": 7}, "rank 7 is not one from 1 to 6"),
        ({"rank": 0}, "rank 0 is not one from 1 to 6"),
        ({}, "needs a rank or a share of the energy"),
        ({"rank": 2, "energy": 0.5}, "one of them only"),
        ({"energy": 1.0}, "energy 1 is not a share between 0 and 1"),
        ({"energy": float("nan")}, "energy nan is not a share"),
        ({"rank": 2, "per_layer": True}, "give energy instead of rank"),
    ],
)
def test_what_cannot_be_asked_for(how: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved_adapter(tmp_path / "it")
    with pytest.raises(UserError, match=said):
        resize_adapter(tmp_path / "it", tmp_path / "out", **how)


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    saved_adapter(tmp_path / "it")
    with pytest.raises(UserError, match="exists already"):
        resize_adapter(tmp_path / "it", tmp_path / "it", rank=2)
    assert isinstance(resize_adapter(tmp_path / "it", tmp_path / "new/out", rank=2), ResizedAdapter)


def test_a_disk_that_is_full_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")

    saved_adapter(tmp_path / "it")
    monkeypatch.setattr("rankwise.spectrum.resize.save_file", full)
    with pytest.raises(UserError, match=r"^\S+/out could not be written: .*File too large"):
        resize_adapter(tmp_path / "it", tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()


class _Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that torch makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(made) if isinstance(each, Tensor) and each.is_floating_point()]
        self.numbers = max([self.numbers, *(tensor.numel() for tensor in tensors)])
        return made


def test_no_matrix_of_the_models_width_is_made(tmp_path: Path) -> None:
    saved_adapter(tmp_path / "it", target_modules=["q_proj"], r=4)
    largest = max(tensor.numel() for tensor in weights_in(tmp_path / "it").values())
    with _Largest() as seen:
        resize_adapter(tmp_path / "it", tmp_path / "out", rank=2)
    assert seen.numbers == largest == 4 * 32
