"""A configuration for `axolotl train`."""

from __future__ import annotations

from rankwise.export.document import yaml_document
from rankwise.export.finding import Finding
from rankwise.export.words import BASE_DROPOUT, CUT_FIRST, eight_bits_differ, whole_alpha


def axolotl_config(finding: Finding) -> str:
    targets, training = finding.recommendation.target_modules, finding.settings
    alpha, rounded = whole_alpha(finding.alpha)
    four_bits = finding.quantize.startswith("nf4")
    settings: dict[str, object] = {"base_model": finding.base_model}
    if finding.revision is not None:
        settings["revision_of_model"] = finding.revision
    settings |= {
        "adapter": "qlora" if four_bits else "lora",
        "load_in_4bit": four_bits,
        "load_in_8bit": finding.quantize == "int8",
        "lora_r": finding.rank,
        "lora_alpha": alpha,
        "peft_use_rslora": finding.use_rslora,
        "lora_dropout": 0.0,
    }
    if targets == "all-linear":
        settings["lora_target_linear"] = True
    else:
        settings["lora_target_modules"] = targets if isinstance(targets, str) else list(targets)
    if four_bits:
        settings["bnb_config_kwargs"] = {"bnb_4bit_use_double_quant": finding.quantize == "nf4-double"}
    settings |= {
        "learning_rate": finding.learning_rate,
        "lr_scheduler": training.schedule,
        "warmup_steps": training.warmup_steps,
        "max_steps": training.steps,
        "micro_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "max_grad_norm": training.max_grad_norm,
        "optimizer": "adamw_torch_fused",
        "weight_decay": 0.0,
        "gradient_checkpointing": training.checkpointing,
        "sequence_len": finding.max_length,
        "excess_length_strategy": "truncate",
        "train_on_inputs": finding.learn_prompts,
        "bf16": finding.dtype == "bfloat16",
    }
    data = "data: add datasets with yours; run with: axolotl train FILE"
    remarks = [*rounded, *eight_bits_differ(finding, "axolotl"), BASE_DROPOUT, f"{CUT_FIRST}; axolotl cuts the end"]
    return yaml_document([*finding.notes, *remarks, data], settings)
