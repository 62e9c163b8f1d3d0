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


def test_its_readme_works_when_pasted(
    finished: RankComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_recommendation(finished.run, "peft", tmp_path / "peft")
    readme = (tmp_path / "peft/README.md").read_text()
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path / "peft")
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert names["model"].peft_config["default"].r == finished.recommendation.rank
    arguments: TrainingArguments = names["arguments"]
    assert arguments.learning_rate == finished.recommendation.learning_rate
    assert (arguments.max_steps, arguments.warmup_steps, arguments.lr_scheduler_type) == (20, 2, "linear")
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (16, 1)
    assert "- holds for: 20 steps of 16 of the " in readme


def test_a_classifier(tmp_path: Path) -> None:
    model = save_model(tmp_path / "bert", "bert")
    targets = [f"bert.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")]
    run = made_run(
        tmp_path / "run",
        causal=False,
        base_model=str(model),
        revision=None,
        base="float32",
        dtype="float32",
        targets=targets,
        modules_to_save=["classifier"],
    )
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
