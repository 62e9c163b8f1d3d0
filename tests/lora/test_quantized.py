"""Packs over a base model in few bits against PEFT's own LoRA layers over bitsandbytes."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from rankwise.base import quantize
from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.quantize import Quantization, frozen_weight, stored_bytes
from rankwise.base.shapes import match_targets
from rankwise.errors import UserError
from rankwise.lora.attach import attached, initial_state
from rankwise.lora.fit import unfit_targets
from rankwise.lora.peft_io import write_adapter
from rankwise.records import Trial
from rankwise.tasks.task import Batch, collate
from rankwise.train.likelihood import likelihood
from rankwise.train.loop import run_pack
from rankwise.train.settings import TrainingSettings
from tests.lora.packs import random_state, targets_of
from tests.lora.test_fit import Router
from tests.models import load_peft_model, peft_model, save_model, tiny_tokenizer
from tests.train.peft_loop import plain_peft_loop
from tests.train.tasks import token_task
from tests.train.test_language_models import TASK, labels_of

pytest.importorskip("bitsandbytes")

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
TRIAL = Trial(4, 8.0, False, 5e-3, 3)
# bitsandbytes multiplies in bfloat16 on some CPUs, where it need not keep anything for a backward pass.
CLOSE = 0.005


def saved(directory: Path, architecture: str) -> Path:
    build = {} if architecture == "bert" else {"build": AutoModelForCausalLM.from_config, "head_dim": 16}
    return save_model(directory, architecture, **WIDE, **build)


def loaded(directory: Path, how: Quantization = "nf4") -> BaseModel:
    labels = 2 if directory.name == "bert" else None
    return load_base(directory, num_labels=labels, dtype="float32", device="cpu", quantize=how)


def reference(base: BaseModel) -> torch.nn.Module:
    """The same base as a user of PEFT loads it."""
    how = BitsAndBytesConfig(
        load_in_4bit=base.quantize != "int8",
        load_in_8bit=base.quantize == "int8",
        llm_int8_threshold=0.0,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=base.quantize == "nf4-double",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head"] if base.causal else ["classifier"],
    )
    options = {"quantization_config": how, "dtype": torch.float32, "device_map": {"": "cpu"}}
    if base.causal:
        return AutoModelForCausalLM.from_pretrained(base.name, attn_implementation="eager", **options)
    model = AutoModelForSequenceClassification.from_pretrained(base.name, attn_implementation="eager", **options)
    model.config.pad_token_id = 0
    return model


def loss_of(base: BaseModel, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    if base.causal:
        return model(**batch.inputs, labels=labels_of(batch)).loss
    return functional.cross_entropy(model(**batch.inputs).logits, batch.labels)


@pytest.fixture(scope="module", params=["bert", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return loaded(saved(tmp_path_factory.mktemp("model") / request.param, request.param))


def test_linear_layers_are_in_4_bits_and_what_is_trained_or_tied_is_not(base: BaseModel) -> None:
    kinds = {name: type(module).__name__ for name, module in base.model.named_modules()}
    assert all(kinds[target.name] == "Linear4bit" for target in targets_of(base))
    assert {kinds[name] for name in base.trained_modules} <= {"Linear"}
    if base.causal:
        assert kinds["lm_head"] == "Linear"
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_a_trial_is_trained_as_peft_trains_it(base: BaseModel) -> None:
    task = TASK if base.causal else token_task()
    targets, settings = targets_of(base), TrainingSettings(steps=15, batch_size=8, warmup_ratio=0.0)
    together = run_pack(base, task, [TRIAL, Trial(8, 8.0, False, 1e-3, 3)], targets, settings)
    names = [target.name for target in targets]
    model = peft_model(
        reference(base),  # type: ignore[arg-type]
        task_type="CAUSAL_LM" if base.causal else "SEQ_CLS",
        r=TRIAL.rank,
        lora_alpha=TRIAL.alpha,
        target_modules=names,
    )
    start = initial_state(base, TRIAL, targets)
    losses = plain_peft_loop(model, start, task, TRIAL, settings, partial(loss_of, base))
    assert together[0].result.train_nll == pytest.approx(losses, rel=CLOSE)
    assert abs(losses[-1] - losses[0]) > 10 * CLOSE * losses[0]


def losses_of_an_adapter(base: BaseModel, directory: Path) -> tuple[float, float]:
    """The loss with a random adapter here, and with the same one read from `directory` by PEFT over bitsandbytes."""
    task = TASK if base.causal else token_task()
    targets = targets_of(base)
    state = random_state(base, TRIAL, targets)
    write_adapter(directory, base, TRIAL, state, targets)
    batch = collate(task.train, np.arange(6), pad_token_id=0)
    with attached(base, [TRIAL], targets) as pack, torch.no_grad():
        pack.load(0, state)
        ours = likelihood(base, batch).nll.sum() / batch.outcomes_by_row.sum()
    adapted = load_peft_model(reference(base), directory).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        return ours.item(), loss_of(base, adapted, batch).item()


def test_peft_loads_the_adapter_over_a_base_in_4_bits(base: BaseModel, tmp_path: Path) -> None:
    ours, theirs = losses_of_an_adapter(base, tmp_path / "adapter")
    assert ours == pytest.approx(theirs, rel=CLOSE)


def test_a_weight_is_unpacked_anew_and_not_kept(base: BaseModel) -> None:
    """Of a forward pass nothing of the size of a weight is kept for the backward pass."""
    task, targets = TASK if base.causal else token_task(), targets_of(base)
    sizes: list[int] = []

    def pack_hook(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    largest = max(target.weights for target in targets)
    batch = collate(task.train, np.arange(1), pad_token_id=0)
    with (
        attached(base, [Trial(1, 1.0, False, 1e-3, 0)], targets),
        torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor),
    ):
        likelihood(base, batch)
    assert 0 < max(sizes) < largest


def test_over_a_base_in_8_bits_a_trial_is_trained_as_over_the_weights_that_these_stand_for(tmp_path: Path) -> None:
    base = loaded(saved(tmp_path / "llama", "llama"), "int8")
    targets, settings = targets_of(base), TrainingSettings(steps=15, batch_size=8, warmup_ratio=0.0)
    (trained,) = run_pack(base, TASK, [TRIAL], targets, settings)
    plain = loaded(tmp_path / "llama", "none").model
    for target in targets:
        weight = frozen_weight(base.model.get_submodule(target.name), torch.float32)
        plain.get_submodule(target.name).weight.data.copy_(weight)
    names = [target.name for target in targets]
    model = peft_model(plain, task_type="CAUSAL_LM", r=TRIAL.rank, lora_alpha=TRIAL.alpha, target_modules=names)
    losses = plain_peft_loop(model, initial_state(base, TRIAL, targets), TASK, TRIAL, settings, partial(loss_of, base))
    assert trained.result.train_nll == pytest.approx(losses, rel=1e-4)


def test_a_weight_in_8_bits_is_within_half_a_step_and_peft_loads_the_adapter_over_bitsandbytes(tmp_path: Path) -> None:
    directory = saved(tmp_path / "llama", "llama")
    plain, base = loaded(directory, "none"), loaded(directory, "int8")
    targets = targets_of(base)
    for target in targets:
        before, after = (frozen_weight(one.model.get_submodule(target.name), torch.float32) for one in (plain, base))
        step = before.abs().amax(dim=1, keepdim=True) / 127
        # bitsandbytes rounds to float16 first.
        assert ((before - after).abs() <= 0.6 * step).all()
    layer = base.model.get_submodule(targets[0].name)
    assert stored_bytes(layer) == targets[0].weights + 4 * targets[0].d_out
    ours, theirs = losses_of_an_adapter(base, tmp_path / "adapter")
    # bitsandbytes rounds the activations, too.
    assert ours == pytest.approx(theirs, rel=0.05)


@pytest.mark.parametrize("how", ["nf4", "nf4-double"])
def test_a_weight_is_near_the_one_that_was_quantised(how: Quantization, tmp_path: Path) -> None:
    directory = saved(tmp_path / "llama", "llama")
    plain, packed = loaded(directory, "none"), loaded(directory, how)
    name = match_targets(plain.model, "all-linear")[0].name
    before, after = (frozen_weight(one.model.get_submodule(name), torch.float32) for one in (plain, packed))
    assert after.shape == before.shape
    assert 0 < (before - after).abs().mean() < 0.15 * before.abs().mean()
    # 4 bits a weight, a scale for 64 of them (in 8 bits, and one in 32 for 256 of those), and the codes' tables.
    blocks = before.numel() // 64
    scales = 4 * blocks if how == "nf4" else blocks + 4 * math.ceil(blocks / 256)
    tables = 4 * 16 if how == "nf4" else 4 * (16 + 256 + 1)
    assert stored_bytes(packed.model.get_submodule(name)) == before.numel() // 2 + scales + tables
    assert packed.bytes < plain.bytes


def test_without_bitsandbytes_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^quantize nf4 needs bitsandbytes: run pip install 'rankwise\[quant\]'"):
        loaded(saved(tmp_path / "llama", "llama"))


@pytest.mark.parametrize("how", ["nf4", "nf4-double", "int8"])
def test_a_checkpoint_that_is_quantised_already_is_as_one_that_is_quantised_here(
    how: Quantization, tmp_path: Path
) -> None:
    here = loaded(saved(tmp_path / "llama", "llama"), how)
    reference(here).save_pretrained(tmp_path / "stored")
    tiny_tokenizer().save_pretrained(tmp_path / "stored")
    # Stored in float32 what is not quantised is computed with in bfloat16 all the same.
    stored = load_base(tmp_path / "stored", num_labels=None, dtype="bfloat16", device="cpu")
    ours = load_base(tmp_path / "llama", num_labels=None, dtype="bfloat16", device="cpu", quantize=how)
    assert (stored.stored_as, stored.bytes) == (how, ours.bytes)
    for layer in match_targets(ours.model, "all-linear"):
        mine, its = (frozen_weight(one.model.get_submodule(layer.name), torch.float32) for one in (here, stored))
        torch.testing.assert_close(its, mine)
    other: Quantization = "int8" if how == "nf4" else "nf4"
    with pytest.raises(UserError, match=f"quantize: the weights of .* are stored in {how} already; leave it out"):
        load_base(tmp_path / "stored", num_labels=None, dtype="float32", device="cpu", quantize=other)
    with pytest.raises(UserError, match=f"are in {how}, a head too"):
        load_base(tmp_path / "stored", num_labels=2, dtype="float32", device="cpu")


@pytest.mark.parametrize("storage", ["uint8", "bfloat16"])
def test_a_stored_checkpoint_computes_in_one_dtype_however_it_is_packed(storage: str, tmp_path: Path) -> None:
    """FSDP wants packed weights to look like numbers of the dtype around them."""
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float16,
        bnb_4bit_quant_storage=getattr(torch, storage),
    )
    model = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "llama", "llama"), quantization_config=how)
    model.save_pretrained(tmp_path / "stored")
    tiny_tokenizer().save_pretrained(tmp_path / "stored")
    base = load_base(tmp_path / "stored", num_labels=None, dtype="float32", device="cpu")
    targets = targets_of(base)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        alone = base.model(input_ids=ids).logits
        assert alone.dtype == torch.float32
        with attached(base, [TRIAL], targets):  # B is 0
            torch.testing.assert_close(base.model(input_ids=ids).logits, alone)


@pytest.mark.parametrize(
    ("stated", "method"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes fp4"),
    ],
)
def test_a_checkpoint_that_is_quantised_otherwise_is_refused(
    stated: dict[str, object], method: str, tmp_path: Path
) -> None:
    directory = saved(tmp_path / "llama", "llama")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    with pytest.raises(UserError, match=f"are quantised by {method}: give the model as it was before"):
        load_base(directory, num_labels=None, dtype="float32", device="cpu")


def test_a_layer_of_a_quantised_model_that_is_not_quantised_is_tried_like_any(tmp_path: Path) -> None:
    base = loaded(saved(tmp_path / "llama", "llama"))
    assert unfit_targets(base, targets_of(base)) == {}
    mlp: Any = base.model.get_submodule("model.layers.0.mlp")
    mlp.router = Router(WIDE["hidden_size"], 4)
    mlp.register_forward_pre_hook(lambda module, inputs: (module.router(inputs[0]), inputs)[1])
    assert list(unfit_targets(base, targets_of(base))) == ["model.layers.0.mlp.router"]
