"""A configuration for `llamafactory-cli train`."""

from __future__ import annotations

from rankwise.export.document import yaml_document
from rankwise.export.finding import Finding
from rankwise.export.words import BASE_DROPOUT, eight_bits_differ, number, transformers_arguments


def llama_factory_config(finding: Finding) -> str:
    targets = finding.recommendation.target_modules
    settings: dict[str, object] = {"model_name_or_path": finding.base_model}
    if finding.revision is not None:
        settings["model_revision"] = finding.revision
    settings |= {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": finding.rank,
        "lora_alpha": number(finding.alpha),
        "use_rslora": finding.use_rslora,
        "lora_dropout": 0.0,
        "lora_target": "all" if targets == "all-linear" else ",".join(_names(finding)),
    }
    if finding.quantize == "int8":
        settings["quantization_bit"] = 8
    elif finding.quantize != "none":
        settings |= {
            "quantization_bit": 4,
            "quantization_type": "nf4",
            "double_quantization": finding.quantize == "nf4-double",
        }
    settings |= transformers_arguments(finding)
    settings |= {
        "disable_gradient_checkpointing": not finding.settings.checkpointing,
        "cutoff_len": finding.max_length,
        "train_on_prompt": finding.learn_prompts,
    }
    data = "data: add dataset and template with yours, and output_dir; run with: llamafactory-cli train FILE"
    return yaml_document([*finding.notes, *eight_bits_differ(finding, "LLaMA-Factory"), BASE_DROPOUT, data], settings)


def _names(finding: Finding) -> tuple[str, ...]:
    targets = finding.recommendation.target_modules
    # A list of names is all that it takes: a regular expression's commas would cut it.
    return finding.targets if isinstance(targets, str) else targets
