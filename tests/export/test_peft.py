"""A directory for PEFT: what it holds is what was measured, and trains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from rankwise import RankComparison, RunError, UserError, export_recommendation, run_rank_comparison
from tests.compare.runs import given_costs
from tests.compare.test_instruction_run import conversations, instruction_config
from tests.export.runs import made_run
from tests.models import CHAT_TEMPLATE, VOCABULARY, peft_model, save_model, tiny_tokenizer
from tests.report.samples import COMPARISON


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RankComparison:
    """A real comparison that names a rank, with rsLoRA: its alpha and scaling are no defaults."""
    place = tmp_path_factory.mktemp("finished")
    model = save_model(place / "llama", "llama", AutoModelForCausalLM.from_config)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = CHAT_TEMPLATE, "[SEP]"
    tokenizer.save_pretrained(model)
    config = instruction_config(
        model, conversations(place / "train.jsonl", 120), alpha=6.0, scalings="rslora", ranks=(2, 4), steps=20
    )
    with given_costs():
        comparison = run_rank_comparison(config, run=place / "run")
    assert comparison.recommendation.rank is not None
    return comparison


def train_two_steps(model: PeftModel, batch: dict[str, torch.Tensor]) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-2), []
    for _ in range(3):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def peft_on(model: PreTrainedModel, directory: Path) -> PeftModel:
    return peft_model(model, **LoraConfig.from_pretrained(str(directory)).to_dict())


def test_what_was_recommended_is_what_trains(finished: RankComparison, tmp_path: Path) -> None:
    exported = export_recommendation(finished.run, "peft", tmp_path / "peft")
    config, answer = LoraConfig.from_pretrained(str(tmp_path / "peft")), finished.recommendation
    assert (config.r, config.lora_alpha, config.use_rslora) == (answer.rank, answer.alpha, answer.use_rslora)
    assert (config.lora_alpha, config.use_rslora, config.inference_mode) == (6, True, False)

    model = peft_on(AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path), tmp_path / "peft")
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 14
    assert {layer.lora_A["default"].out_features for layer in layers} == {answer.rank}
    assert {layer.scaling["default"] for layer in layers} == {6 / config.r**0.5}
    ids = torch.randint(4, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    losses = train_two_steps(model, {"input_ids": ids, "labels": ids})
    assert losses[2] < losses[0]

    assert exported.text is None
    assert exported.remarks[1].startswith(f"vLLM serves rank {config.r} with --max-lora-rank 8;")


def pasted(directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the code in a README leaves."""
    code = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(directory)
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names


def test_its_readme_works_when_pasted(
    finished: RankComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_recommendation(finished.run, "peft", tmp_path / "peft")
    names = pasted(tmp_path / "peft", monkeypatch)
    assert names["model"].peft_config["default"].r == finished.recommendation.rank
    arguments: TrainingArguments = names["arguments"]
    assert arguments.learning_rate == finished.recommendation.learning_rate
    assert (arguments.max_steps, arguments.warmup_steps, arguments.lr_scheduler_type) == (20, 2, "linear")
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (16, 1)
    assert "- holds for: 20 steps of 16 of the " in (tmp_path / "peft/README.md").read_text()


def classifier_run(directory: Path, model: Path, *, dtype: str = "float32", **others: Any) -> Path:
    return made_run(directory, causal=False, base_model=str(model), revision=None, base=dtype, dtype=dtype, **others)


def test_a_classifier(tmp_path: Path) -> None:
    model = save_model(tmp_path / "bert", "bert")
    targets = [f"bert.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")]
    run = classifier_run(tmp_path / "run", model, targets=targets, modules_to_save=["classifier"])
    exported = export_recommendation(run, "peft")
    assert exported.path == run / "export/peft"
    assert not any("vLLM" in remark for remark in exported.remarks)
    written = json.loads((run / "export/peft/adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["use_rslora"]) == (16, 32, False)
    assert written["target_modules"] == targets
    adapted = peft_on(AutoModelForSequenceClassification.from_pretrained(model, num_labels=2), run / "export/peft")
    assert sum(hasattr(module, "lora_A") for module in adapted.modules()) == 4
    batch = {"input_ids": torch.full((2, 5), 7), "labels": torch.tensor([0, 1])}
    before = adapted.get_submodule("base_model.model.classifier.modules_to_save.default").weight.clone()
    train_two_steps(adapted, batch)
    after = adapted.get_submodule("base_model.model.classifier.modules_to_save.default").weight
    assert not torch.equal(before, after)
    assert export_recommendation(run, "peft").path == exported.path  # its own directory is written anew


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # the run's adapter is made by hand
@pytest.mark.parametrize(
    ("architecture", "target", "changed"),
    [
        ("bert", "query", {}),
        ("deberta-v2", "query_proj", {}),
        ("gpt2", "c_attn", {}),
        ("xlnet", "layer_1", {}),
        ("llama", "q_proj", {"attention_dropout": 0.3}),
        ("mixtral", "q_proj", {"router_jitter_noise": 0.3}),
    ],
)
def test_its_readme_trains_without_the_bases_dropout(
    architecture: str, target: str, changed: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BERT's is 0.1; what was measured had none."""
    model = save_model(tmp_path / "model", architecture, **changed)
    run = classifier_run(tmp_path / "run", model, targets=[target])
    export_recommendation(run, "peft")
    plain = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    adapted = pasted(run / "export/peft", monkeypatch)["model"]
    batch = {"input_ids": torch.full((2, 12), 7)}
    with torch.no_grad():
        for module, steady in ((plain, False), (adapted, True)):
            evaluated = module.eval()(**batch).logits
            trained = [module.train()(**batch).logits for _ in range(2)]
            assert all(torch.equal(evaluated, logits) == steady for logits in trained)


def test_its_readme_trains_the_head_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT copies it as the base has it: in bfloat16 steps below 2⁻⁸ of a weight would be lost."""
    model = save_model(tmp_path / "bert", "bert")
    run = classifier_run(
        tmp_path / "run", model, dtype="bfloat16", targets=["query", "value"], modules_to_save=["classifier", "pooler"]
    )
    export_recommendation(run, "peft")
    file = run / "export/peft/training_arguments.json"
    here = {"max_steps": 2, "warmup_steps": 0, "learning_rate": 1e-5, "use_cpu": True, "disable_tqdm": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | here | {"report_to": "none"}))
    names = pasted(run / "export/peft", monkeypatch)
    adapted = names["model"]
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert sum("modules_to_save" in name for name in trained) == 4
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert adapted.get_input_embeddings().weight.dtype is torch.bfloat16
    before = {name: parameter.detach().clone() for name, parameter in trained.items() if "modules_to_save" in name}
    data = [{"input_ids": [7, 8, 9, 10 + number], "labels": number % 2} for number in range(16)]
    Trainer(model=adapted, args=names["arguments"], train_dataset=data).train()
    moved = [(trained[name] != start).float().mean() for name, start in before.items() if name.endswith("weight")]
    assert min(moved) > 0.9


@pytest.mark.parametrize("trainer", ["trl", "axolotl", "llama-factory", "unsloth", "torchtune", "litgpt"])
def test_a_classifier_is_nothing_for_trainers_of_language_models(trainer: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", causal=False)
    with pytest.raises(UserError, match=f"^{trainer} trains language models, .* of a classifier: give --to peft$"):
        export_recommendation(run, trainer)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("rank", "alpha", "use_rslora", "learning_rate"))
    run = made_run(tmp_path / "none", answer={**nothing, "status": "no_gain", "reason": "nothing is gained"})
    with pytest.raises(UserError, match="none names no rank, so there is nothing to export: nothing is gained"):
        export_recommendation(run, "trl")
    run = made_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"^to: 'keras' is not one of peft, trl, .*, hub:USER/NAME$"):
        export_recommendation(run, "keras")
    with pytest.raises(UserError, match=r"^dry-run: .* --to trl; leave it out$"):
        export_recommendation(run, "trl", dry_run=True)
    with pytest.raises(UserError, match=r"^out: .*adapter exists; remove it, or give another --out$"):
        export_recommendation(run, "peft", run / "adapter")
    assert (run / "adapter/adapter_model.safetensors").is_file()
    (run / "adapter/adapter_config.json").unlink()
    with pytest.raises(RunError, match=r"adapter_config.json is missing or damaged \(.*\); restore it from a copy$"):
        export_recommendation(run, "trl")
    for text, reason in (("{", "missing or damaged"), ("[]", "no JSON object"), ("{}", r"KeyError\('config'\)")):
        run = made_run(tmp_path / f"damaged{len(text)}{text[-1]}", comparison=COMPARISON)
        (run / "comparison.json").write_text(text)
        with pytest.raises(RunError, match=reason):
            export_recommendation(run, "trl")
