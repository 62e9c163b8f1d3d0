"""A configuration for `litgpt finetune_lora`."""

from __future__ import annotations

import math

from rankwise.export.document import yaml_document
from rankwise.export.finding import Finding
from rankwise.export.words import adapted_kinds, alpha_without_rslora, eight_bits_differ, whole_alpha

_QUANTIZE = {"none": None, "nf4": "bnb.nf4", "nf4-double": "bnb.nf4-dq", "int8": "bnb.int8-training"}


def litgpt_config(finding: Finding) -> str:
    kinds, training = adapted_kinds(finding, "litgpt"), finding.settings
    alpha, translated = alpha_without_rslora(finding)
    alpha, rounded = whole_alpha(alpha)
    settings: dict[str, object] = {
        "checkpoint_dir": finding.base_model,
        "precision": "bf16-true" if finding.dtype == "bfloat16" else "32-true",
        "quantize": _QUANTIZE[finding.quantize],
        "lora_r": finding.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        **{f"lora_{kind}": kind in kinds for kind in ("query", "key", "value", "projection", "mlp", "head")},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": finding.learning_rate, "weight_decay": 0.0},
        },
        "train": {
            "global_batch_size": training.batch_size * training.accumulation,
            "micro_batch_size": training.batch_size,
            # It divides by the warm-up steps.
            "lr_warmup_steps": max(1, training.warmup_steps),
            # The steps end the training; fewer epochs than they take would bend the schedule.
            "epochs": math.ceil(finding.passes) + 1,
            "max_steps": training.steps,
            "max_seq_length": finding.max_length,
        },
    }
    remarks = [*translated, *rounded, *eight_bits_differ(finding, "litgpt"), *_unsaid(finding)]
    return yaml_document([*finding.notes, *remarks], settings)


def _unsaid(finding: Finding) -> list[str]:
    training = finding.settings
    unsaid = [f"clipping gradients to the norm {training.max_grad_norm:g} has no word here"]
    if training.schedule != "cosine":
        unsaid.append(f"the schedule {training.schedule} has no word here: litgpt's is cosine, after the same warm-up")
    if training.warmup_steps == 0:
        unsaid.append("no warm-up has no word here: one step")
    if training.checkpointing:
        unsaid.append("gradient checkpointing has no word here: where memory is short, lower train.micro_batch_size")
    if finding.is_local:
        unsaid.append("checkpoint_dir: convert the directory first with: litgpt convert_to_litgpt DIRECTORY")
    if finding.revision is not None:
        unsaid.append(f"the model's revision {finding.revision} has no word here")
    if finding.learn_prompts:
        learned = "prompts were learned, too: leave data.init_args.mask_prompt at false"
    else:
        learned = "completions alone were learned: add data.init_args.mask_prompt: true"
    return [
        *unsaid,
        "data: add data with yours, else it trains on Alpaca; run with: litgpt finetune_lora --config FILE",
        learned,
    ]
