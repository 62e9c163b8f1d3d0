from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import match_targets
from rankwise.base.source import EMBEDDED, EMBEDDED_HUB_ID
from rankwise.errors import UserError
from rankwise.lora.attach import State, attached, factor_names, initial_state
from rankwise.lora.fit import unfit_targets
from rankwise.lora.packable import packable
from rankwise.lora.peft_io import misread_targets, read_adapter, write_adapter
from rankwise.memory.parameters import estimate_lora_params
from rankwise.records import ParameterCount, Trial
from tests.lora.packs import (
    LABELS,
    POOLERLESS,
    load_case,
    load_reference,
    logits_of,
    random_state,
    some_batch,
    targets_of,
)
from tests.models import load_peft_model, peft_model, save_model

CASES = ["bert", POOLERLESS, "roberta", "deberta-v2", "distilbert", "gpt2", "llama"]
PLAIN = Trial(rank=3, alpha=8, use_rslora=False, learning_rate=1e-3, seed=0)
STABILISED = Trial(rank=5, alpha=2.5, use_rslora=True, learning_rate=1e-3, seed=1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_case("bert", tmp_path_factory.mktemp("bert"))


def settings_in(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((directory / CONFIG_NAME).read_text())
    return settings


@pytest.mark.parametrize(
    ("architecture", "layers", "misread", "why"),
    [
        ("glm4_moe", "mlp", 6, "PEFT would take it for experts"),
        ("mamba", "mixer.out_proj", 2, "PEFT refuses it"),
        ("llama", "", 0, ""),
    ],
)
def test_peft_computes_as_was_trained_from_the_layers_that_it_reads(
    architecture: str, layers: str, misread: int, why: str, tmp_path: Path
) -> None:
    """Of a mixture's dense layers PEFT makes adapters of experts, without a word; of Mamba's it takes not all."""
    save_model(tmp_path / "base", architecture, AutoModelForCausalLM.from_config)
    base = load_base(tmp_path / "base", num_labels=None, dtype="float32", device="cpu")
    unfit = unfit_targets(base, targets_of(base))
    fit = [target for target in targets_of(base) if target.name not in unfit]
    found = misread_targets(base, fit)
    assert (len(found), set(found.values())) == (misread, {why} - {""})
    assert all(layers in name for name in found)
    left = [target for target in fit if target.name not in found]
    state = random_state(base, PLAIN, left)
    write_adapter(tmp_path / "adapter", base, PLAIN, state, left)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of keys without a place
        peft = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), str(tmp_path / "adapter")
        )
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        given = peft(input_ids=ids).logits
        for target in left:
            name_a, name_b = factor_names(target.name)
            base.model.get_submodule(target.name).weight += PLAIN.scaling * state[name_b] @ state[name_a]
        assert torch.allclose(given, base.model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_from_a_written_adapter_what_the_pack_computed(case: str, tmp_path: Path) -> None:
    base = load_case(case, tmp_path / "base")
    targets = targets_of(base)
    states = [(trial, random_state(base, trial, targets)) for trial in (PLAIN, STABILISED)]
    packs = [states] if packable(base, targets) else [[state] for state in states]
    ours = torch.cat([logits_of(base, targets, pack) for pack in packs])
    assert not torch.allclose(ours[0], ours[1], atol=1e-2)
    for (trial, state), expected in zip(states, ours, strict=True):
        directory = tmp_path / trial.id
        write_adapter(directory, base, trial, state, targets)
        peft = load_peft_model(load_reference(base), directory)
        with torch.no_grad():
            assert torch.allclose(peft(**some_batch()).logits, expected, rtol=0, atol=1e-5)
        adapted = {name for name, module in peft.get_base_model().named_modules() if isinstance(module, LoraLayer)}
        assert adapted == {target.name for target in targets}
        settings = settings_in(directory)
        assert settings["target_modules"] == [target.name for target in targets]
        assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (
            trial.rank,
            trial.alpha,
            trial.use_rslora,
        )


@pytest.mark.parametrize("case", CASES)
def test_what_was_written_is_read_back_exactly(case: str, tmp_path: Path) -> None:
    base = load_case(case, tmp_path / "base")
    targets = targets_of(base)
    state = random_state(base, STABILISED, targets)
    write_adapter(tmp_path / "adapter", base, STABILISED, state, targets)
    adapter = read_adapter(tmp_path / "adapter", base, targets)
    assert (adapter.rank, adapter.alpha, adapter.use_rslora) == (5, 2.5, True)
    assert adapter.state.keys() == state.keys()
    assert all(torch.equal(adapter.state[name], state[name]) for name in state)


def test_an_adapter_is_read_into_a_pack_that_is_attached_already(bert: BaseModel, tmp_path: Path) -> None:
    targets = targets_of(bert)
    state = random_state(bert, PLAIN, targets)
    write_adapter(tmp_path / "adapter", bert, PLAIN, state, targets)
    with attached(bert, [PLAIN], targets) as pack:
        pack.load(0, read_adapter(tmp_path / "adapter", bert, targets).state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in pack.state(0).items())


@pytest.mark.parametrize("case", ["bert", "roberta", "gpt2", "llama"])
def test_peft_trains_as_many_parameters_as_were_estimated(case: str, tmp_path: Path) -> None:
    base = load_case(case, tmp_path / "base")
    targets = targets_of(base)
    state = initial_state(base, PLAIN, targets)
    write_adapter(tmp_path / "adapter", base, PLAIN, state, targets)
    peft = load_peft_model(load_reference(base), tmp_path / "adapter", trainable=True)
    count = estimate_lora_params(base.name, PLAIN.rank, num_labels=LABELS)
    assert peft.get_nb_trainable_parameters()[0] == count.total == sum(tensor.numel() for tensor in state.values())
    heads = sum(tensor.numel() for name, tensor in state.items() if ".lora_" not in name)
    assert count == ParameterCount(count.total - heads, heads)


def test_a_fresh_process_needs_only_the_directory(tmp_path: Path) -> None:
    expected = {}
    for case in ("bert", POOLERLESS, "roberta", "deberta-v2"):
        base = load_case(case, tmp_path / case / "base")
        targets = targets_of(base)
        state = random_state(base, PLAIN, targets)
        write_adapter(tmp_path / case / "adapter", base, PLAIN, state, targets)
        (expected[case],) = logits_of(base, targets, [(PLAIN, state)])
    torch.save(some_batch(), tmp_path / "batch.pt")
    script = f"""
import torch
from peft import AutoPeftModelForSequenceClassification
for case in {list(expected)}:
    model = AutoPeftModelForSequenceClassification.from_pretrained(f"{{case}}/adapter", num_labels={LABELS})
    torch.save(model.eval()(**torch.load("batch.pt")).logits.detach(), f"{{case}}/logits.pt")
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=tmp_path, env=environment)
    for case, ours in expected.items():
        assert torch.allclose(torch.load(tmp_path / case / "logits.pt"), ours, rtol=0, atol=1e-5), case


def test_a_module_whose_name_ends_in_a_targets_is_not_adapted(tmp_path: Path) -> None:
    base = load_case("bert", tmp_path / "base")
    targets = targets_of(base, ["query"])
    state = random_state(base, PLAIN, targets)
    reference = load_reference(base)
    for model in (base.model, reference):
        model.add_module("twin", torch.nn.ModuleDict({"bert": copy.deepcopy(model.bert)}))
    write_adapter(tmp_path / "adapter", base, PLAIN, state, targets)
    adapted = [
        name
        for name, module in load_peft_model(reference, tmp_path / "adapter").get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    ]
    assert adapted == [target.name for target in targets]


def test_heads_are_saved_once_by_the_names_that_peft_gives_them(tmp_path: Path) -> None:
    saved = {}
    for case in CASES:
        base = load_case(case, tmp_path / case / "base")
        targets = targets_of(base)
        write_adapter(tmp_path / case / "adapter", base, PLAIN, initial_state(base, PLAIN, targets), targets)
        saved[case] = settings_in(tmp_path / case / "adapter")["modules_to_save"]
    assert saved == {
        "bert": ["classifier"],
        POOLERLESS: ["bert.pooler.dense", "classifier"],
        "roberta": ["classifier"],
        "deberta-v2": ["pooler.dense", "classifier"],
        "distilbert": ["pre_classifier", "classifier"],
        "gpt2": ["score"],
        "llama": ["score"],
    }


def test_the_base_model_is_named_so_that_it_is_found_again(bert: BaseModel, tmp_path: Path) -> None:
    targets = targets_of(bert)
    write_adapter(tmp_path / "local", bert, PLAIN, initial_state(bert, PLAIN, targets), targets)
    local = settings_in(tmp_path / "local")
    assert (local["base_model_name_or_path"], local["revision"]) == (bert.name, None)
    assert Path(bert.name).is_absolute()
    embedded = load_base(EMBEDDED, num_labels=2, device="cpu", dtype="float32")
    targets = match_targets(embedded.model, ["query"])
    write_adapter(tmp_path / "embedded", embedded, PLAIN, initial_state(embedded, PLAIN, targets), targets)
    assert settings_in(tmp_path / "embedded")["base_model_name_or_path"] == EMBEDDED_HUB_ID
    assert str(Path.home()) not in (tmp_path / "embedded" / CONFIG_NAME).read_text()


def test_the_same_adapter_is_written_in_the_same_bytes(bert: BaseModel, tmp_path: Path) -> None:
    targets = targets_of(bert)
    state = random_state(bert, PLAIN, targets)
    for name in ("one", "other"):
        write_adapter(tmp_path / name, bert, PLAIN, state, targets)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == [CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in names)


def test_an_adapter_of_another_rank_than_the_trials_is_not_written(bert: BaseModel, tmp_path: Path) -> None:
    targets = targets_of(bert)
    state = random_state(bert, STABILISED, targets)
    with pytest.raises(
        ValueError, match=r"no adapter of rank 3: 26 tensors have another shape .*\(5, 32\), not \(3, 32\)"
    ):
        write_adapter(tmp_path / "adapter", bert, PLAIN, state, targets)
    del state["classifier.bias"]
    with pytest.raises(ValueError, match=r"1 tensors are missing \(classifier.bias"):
        write_adapter(tmp_path / "adapter", bert, STABILISED, state, targets)
    assert not any(tmp_path.iterdir())


def test_a_later_adapter_replaces_an_earlier_one_whole(bert: BaseModel, tmp_path: Path) -> None:
    targets = targets_of(bert)
    for trial in (PLAIN, STABILISED):
        write_adapter(tmp_path / "adapter", bert, trial, random_state(bert, trial, targets), targets)
    assert read_adapter(tmp_path / "adapter", bert, targets).rank == STABILISED.rank
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("case", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_adapter_that_peft_saved_computes_the_same_in_a_pack(case: str, use_rslora: bool, tmp_path: Path) -> None:
    base = load_case(case, tmp_path / "base")
    peft = peft_model(
        load_reference(base),
        r=4,
        lora_alpha=6,
        lora_dropout=0.3,
        use_rslora=use_rslora,
        target_modules="all-linear",
        init_lora_weights=False,
    ).eval()
    with torch.no_grad():
        expected = peft(**some_batch()).logits
    peft.save_pretrained(str(tmp_path / "adapter"))
    targets = targets_of(base)
    adapter = read_adapter(tmp_path / "adapter", base, targets)
    trial = Trial(adapter.rank, adapter.alpha, adapter.use_rslora, learning_rate=0, seed=0)
    assert (trial.rank, trial.alpha, trial.use_rslora) == (4, 6, use_rslora)
    (ours,) = logits_of(base, targets, [(trial, adapter.state)])
    assert torch.allclose(ours, expected, rtol=0, atol=1e-5)


def reconfigure(directory: Path, **changed: object) -> None:
    (directory / CONFIG_NAME).write_text(json.dumps(settings_in(directory) | changed))


def change_weights(directory: Path, change: Callable[[State], object]) -> None:
    tensors = load_file(directory / SAFETENSORS_WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, directory / SAFETENSORS_WEIGHTS_NAME)


def pickle_the_weights(directory: Path) -> None:
    torch.save(load_file(directory / SAFETENSORS_WEIGHTS_NAME), directory / "adapter_model.bin")
    (directory / SAFETENSORS_WEIGHTS_NAME).unlink()


CLASSIFIER = "base_model.model.classifier.weight"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda it: (it / CONFIG_NAME).unlink(), ["is not an adapter: it has no adapter_config.json"]),
        (lambda it: (it / CONFIG_NAME).write_text("hello"), ["adapter_config.json is not JSON"]),
        (lambda it: (it / CONFIG_NAME).write_text("[8]"), ["no r and lora_alpha"]),
        (lambda it: (it / CONFIG_NAME).write_text('{"peft_type": "IA3"}'), ["no r and lora_alpha"]),
        (lambda it: reconfigure(it, peft_type="ADALORA"), ['peft_type is "ADALORA"']),
        (lambda it: reconfigure(it, r=4), ["26 tensors have another shape", "(3, 32), not (4, 32)"]),
        (pickle_the_weights, ["only pickled ones in adapter_model.bin, which can run code: convert them"]),
        (lambda it: (it / SAFETENSORS_WEIGHTS_NAME).unlink(), ["no weights in adapter_model.safetensors"]),
        (lambda it: (it / SAFETENSORS_WEIGHTS_NAME).write_bytes(b"x" * 99), ["could not be read"]),
        (lambda it: change_weights(it, lambda t: t.pop(CLASSIFIER)), ["1 tensors are missing (classifier.weight"]),
        (lambda it: change_weights(it, lambda t: t.update(other=t[CLASSIFIER].clone())), ["no place (other"]),
        (lambda it: reconfigure(it, init_lora_weights="pissa"), ['init_lora_weights is "pissa"', "base weights"]),
        (lambda it: reconfigure(it, a_setting_of_the_future=2), ["a_setting_of_the_future is 2"]),
        (
            lambda it: reconfigure(
                it, use_dora=True, bias="all", rank_pattern={"query": 2}, alpha_pattern={"key": 1}, lora_bias=True, r=4
            ),
            ["use_dora is true", 'bias is "all"', "rank_pattern is", "alpha_pattern is", "lora_bias is true", "shape"],
        ),
    ],
)
def test_what_cannot_be_taken_over_is_listed_in_one_line(
    damage: Callable[[Path], object], said: list[str], bert: BaseModel, tmp_path: Path
) -> None:
    targets = targets_of(bert)
    write_adapter(tmp_path, bert, PLAIN, initial_state(bert, PLAIN, targets), targets)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        read_adapter(tmp_path, bert, targets)
    message = str(error.value)
    assert message.isprintable()
    assert str(tmp_path) in message
    assert all(part in message for part in said), message
