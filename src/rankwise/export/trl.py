"""A configuration for `trl sft`."""

from __future__ import annotations

import re

from rankwise.export.document import yaml_document
from rankwise.export.finding import Finding
from rankwise.export.words import BASE_DROPOUT, CUT_FIRST, eight_bits_differ, number, transformers_arguments


def trl_config(finding: Finding) -> str:
    targets = finding.recommendation.target_modules
    if not isinstance(targets, str):
        # TRL makes a list of one name a text, which PEFT then takes for a regular expression.
        targets = rf"(?:.*\.)?{re.escape(targets[0])}" if len(targets) == 1 else targets
    settings: dict[str, object] = {"model_name_or_path": finding.base_model}
    if finding.revision is not None:
        settings["model_revision"] = finding.revision
    settings |= {
        "dtype": finding.dtype,
        "use_peft": True,
        "lora_r": finding.rank,
        "lora_alpha": number(finding.alpha),
        "use_rslora": finding.use_rslora,
        "lora_dropout": 0.0,
        "lora_target_modules": targets if isinstance(targets, str) else list(targets),
    }
    if finding.quantize == "int8":
        settings["load_in_8bit"] = True
    elif finding.quantize != "none":
        settings |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "use_bnb_nested_quant": finding.quantize == "nf4-double",
        }
    settings |= transformers_arguments(finding)
    settings |= {"gradient_checkpointing": finding.settings.checkpointing, "max_length": finding.max_length}
    remarks = [*eight_bits_differ(finding, "TRL"), *_on_adapters(finding), BASE_DROPOUT, *_on_data(finding)]
    return yaml_document([*finding.notes, *remarks], settings)


def _on_adapters(finding: Finding) -> list[str]:
    # trl/trainer/sft_trainer.py of 1.16.0 does so wherever the base is loaded quantised.
    if finding.quantize == "none":
        return []
    return [f"adapters: the comparison trained A and B in float32; over {finding.quantize} TRL makes them bfloat16"]


def _on_data(finding: Finding) -> list[str]:
    name = "data: add dataset_name, or datasets, with yours; run with: trl sft --config FILE"
    cut = f"{CUT_FIRST}; TRL cuts the end, and drops what is then without a token to learn"
    if finding.learn_prompts:
        learned = "prompts were learned, too: for prompt and completion columns add completion_only_loss: false"
    else:
        learned = "completions alone were learned: for a messages column add assistant_only_loss: true"
    return [cut, name, learned]
