"""The texts read by the trainers themselves, where they are installed: none of them needs a GPU to read."""

from __future__ import annotations

import inspect
import json
import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, HfArgumentParser

from rankwise import export_recommendation
from rankwise.tasks.examples import Examples
from rankwise.tasks.learned import tokenise
from tests.export.runs import finding, made_run
from tests.export.test_texts import TEXTS, VARIANTS
from tests.models import save_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture(params=range(len(VARIANTS)))
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return made_run(tmp_path / "run", **VARIANTS[request.param])


def test_trl_reads_it(run: Path) -> None:
    trl = pytest.importorskip("trl")
    file = run / "trl.yaml"
    export_recommendation(run, "trl", file)
    said = yaml.safe_load(file.read_text())
    parser = trl.TrlParser((trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig, trl.DatasetMixtureConfig))
    # A name that it does not know is an error here; `trl sft` passes over it in silence.
    _, training, model, _ = parser.parse_args_and_config(["--config", str(file), "--use_cpu", "true"])
    assert (training.max_steps, training.warmup_steps, training.learning_rate) == (200, 20, 3e-4)
    adapter = trl.get_peft_config(model)
    assert (adapter.r, adapter.lora_alpha, adapter.use_rslora) == (16, said["lora_alpha"], said["use_rslora"])
    assert adapter.lora_dropout == 0


def model_and_data(tmp_path: Path, *prompts: str) -> Path:
    """A tiny language model in `model`, and these prompts in `data`, each to be completed by "one"."""
    model = save_model(tmp_path / "model", "llama", AutoModelForCausalLM.from_config)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(model)
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"prompt": prompt, "completion": "one"}) for prompt in prompts]
    (tmp_path / "data/train.jsonl").write_text("\n".join(lines))
    return model


def train_with_trl(tmp_path: Path) -> None:
    export_recommendation(tmp_path / "run", "trl", tmp_path / "trl.yaml")
    sft = import_module("trl.scripts.sft")
    arguments = ["--config", str(tmp_path / "trl.yaml"), "--dataset_name", str(tmp_path / "data"), "--use_cpu", "true"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--report_to", "none", "--disable_tqdm", "true"]
    sft.main(*sft.make_parser().parse_args_and_config(arguments))


def test_trl_trains_it(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    model = model_and_data(tmp_path, *["say one. "] * 8)
    # One target module, which TRL turns into a text.
    made_run(
        tmp_path / "run",
        base_model=str(model),
        revision=None,
        base="float32",
        dtype="float32",
        answer={"target_modules": ("q_proj",), "alpha": 24.0, "use_rslora": True},
        config={"steps": 2, "max_length": 32},
    )
    train_with_trl(tmp_path)
    adapter = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["use_rslora"]) == (16, 24, True)
    state = json.loads((tmp_path / "out/checkpoint-2/trainer_state.json").read_text())
    assert (state["global_step"], state["max_steps"], state["train_batch_size"]) == (2, 2, 8)


@pytest.mark.parametrize("base", ["bfloat16", "nf4", "int8"])
def test_trl_makes_adapters_bfloat16_where_that_is_told(base: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    model = model_and_data(tmp_path, *["say one. "] * 8)
    run = made_run(
        tmp_path / "run", base_model=str(model), revision=None, base=base, config={"steps": 1, "max_length": 32}
    )
    train_with_trl(tmp_path)
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "out/adapter_model.safetensors").values()}
    told = "TRL makes them bfloat16" in (export_recommendation(run, "trl").text or "")
    assert (dtypes, told) == (({torch.float32}, False) if base == "bfloat16" else ({torch.bfloat16}, True))


def test_trl_drops_what_the_comparison_cut(tmp_path: Path) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    prompts = ["say one. ", "say one. " * 8]
    model = model_and_data(tmp_path, *prompts)
    made_run(tmp_path / "run", base_model=str(model), revision=None, config={"max_length": 32})
    text = export_recommendation(tmp_path / "run", "trl", tmp_path / "trl.yaml").text
    assert "TRL cuts the end, and drops what is then without a token to learn" in (text or "")
    parser = trl.TrlParser((trl.SFTConfig,))
    training, _ = parser.parse_args_and_config(
        ["--config", str(tmp_path / "trl.yaml"), "--use_cpu", "true"], return_remaining_strings=True
    )
    data = datasets.Dataset.from_list([{"prompt": prompt, "completion": "one"} for prompt in prompts])
    theirs = trl.SFTTrainer(str(model), training, train_dataset=data).train_dataset
    examples = Examples(
        ids=np.arange(2),
        texts=[f"{prompt}one" for prompt in prompts],
        spans=[((len(prompt), len(prompt) + 3),) for prompt in prompts],
        pairs=None,
        labels=np.zeros(2, dtype=np.int64),
    )
    ours, cut = tokenise(tiny_tokenizer(), examples, 32, learn_prompts=False)
    assert (len(theirs), len(ours), cut.prompts) == (1, 2, 1)


def test_axolotl_reads_it(run: Path) -> None:
    schema = pytest.importorskip("axolotl.utils.schemas.config").AxolotlInputConfig
    said = yaml.safe_load(export_recommendation(run, "axolotl").text or "")
    assert said.keys() <= schema.model_fields.keys()
    read = schema(**said, datasets=[{"path": "train.jsonl", "type": "chat_template"}])
    assert (read.lora_r, read.lora_alpha, read.peft_use_rslora) == (
        16,
        said["lora_alpha"],
        said["peft_use_rslora"],
    )


def test_llama_factory_reads_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DISABLE_VERSION_CHECK", "1")
    parts = [
        getattr(pytest.importorskip(f"llamafactory.hparams.{module}"), name)
        for module, name in (
            ("model_args", "ModelArguments"),
            ("data_args", "DataArguments"),
            ("training_args", "TrainingArguments"),
            ("finetuning_args", "FinetuningArguments"),
        )
    ]
    said = yaml.safe_load(export_recommendation(run, "llama-factory").text or "")
    values = said | {"output_dir": "out", "use_cpu": True}
    _, data, training, adapter = HfArgumentParser(parts).parse_dict(values)
    assert (adapter.lora_rank, adapter.lora_alpha, adapter.use_rslora) == (16, said["lora_alpha"], said["use_rslora"])
    assert (data.cutoff_len, training.max_steps) == (512, 200)


def test_litgpt_reads_it(run: Path) -> None:
    setup = pytest.importorskip("litgpt.finetune.lora").setup
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_function_arguments(setup)
    parser.add_argument("--config", action="config")
    file = run / "litgpt.yaml"
    export_recommendation(run, "litgpt", file)
    read = parser.instantiate_classes(parser.parse_args(["--config", str(file)]))
    assert read.lora_r == 16
    assert read.train.gradient_accumulation_iters(1, 1) == 1
    pytest.importorskip("litgpt.finetune.lora").validate_args(read.train, read.eval)


def test_torchtune_reads_it(run: Path) -> None:
    builders = pytest.importorskip("torchtune.models.llama3")
    instantiate = pytest.importorskip("torchtune.config").instantiate
    said = yaml.safe_load(export_recommendation(run, "torchtune").text or "")
    model = said["model"]
    quantised = model.pop("quantize_base", False)  # its weights need not be quantised to be counted
    sizes = {"vocab_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16, "max_seq_len": 16}
    built = builders.lora_llama3(**model, **sizes)
    ranks = {module.rank for module in built.modules() if hasattr(module, "lora_a")}
    alphas = {module.alpha for module in built.modules() if hasattr(module, "lora_a")}
    assert (ranks, alphas) == ({16}, {model["lora_alpha"]})
    assert "quantize_base" in inspect.signature(builders.lora_llama3).parameters or not quantised
    omegaconf = import_module("omegaconf")
    optimizer = instantiate(omegaconf.OmegaConf.create(said["optimizer"]), built.parameters())
    schedule = omegaconf.OmegaConf.create(said["lr_scheduler"])
    instantiate(schedule, optimizer, num_training_steps=200, last_epoch=-1)


@pytest.mark.parametrize(
    ("module", "data", "argument"),
    [
        ("torchtune.datasets", "alpaca_dataset", "train_on_input"),
        ("torchtune.datasets", "chat_dataset", "train_on_input"),
        ("torchtune.datasets", "instruct_dataset", "train_on_input"),
        ("litgpt.data", "JSON", "mask_prompt"),
        ("litgpt.data", "Alpaca", "mask_prompt"),
        ("trl", "SFTConfig", "completion_only_loss"),
        ("trl", "SFTConfig", "assistant_only_loss"),
    ],
)
def test_what_says_which_tokens_are_learned_is_there(module: str, data: str, argument: str) -> None:
    """Comments name it, which nobody reads but the user."""
    assert argument in inspect.signature(getattr(pytest.importorskip(module), data)).parameters


def test_all_variants_can_be_said_by_all(tmp_path: Path) -> None:
    for number, changed in enumerate(VARIANTS):
        of = finding(tmp_path / str(number), **changed)
        assert all(text(of).startswith("# resolved") for text in TEXTS.values())
