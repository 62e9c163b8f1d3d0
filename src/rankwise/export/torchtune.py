"""Lines for the configuration of one of torchtune's LoRA recipes."""

from __future__ import annotations

import math

from rankwise.export.document import yaml_document
from rankwise.export.finding import Finding
from rankwise.export.words import adapted_kinds, alpha_without_rslora, number

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "projection": "output_proj"}
_SCHEDULES = {
    "cosine": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
    # torchtune has the first alone, and takes any function of these arguments.
    "linear": "transformers.get_linear_schedule_with_warmup",
}


def torchtune_config(finding: Finding) -> str:
    kinds, training = adapted_kinds(finding, "torchtune"), finding.settings
    alpha, translated = alpha_without_rslora(finding)
    epochs = math.ceil(finding.passes)
    model: dict[str, object] = {
        "lora_rank": finding.rank,
        "lora_alpha": number(alpha),
        "lora_dropout": 0.0,
        "lora_attn_modules": [name for kind, name in _ATTENTION.items() if kind in kinds],
        "apply_lora_to_mlp": "mlp" in kinds,
    }
    if "head" in kinds:  # not every model has the word
        model["apply_lora_to_output"] = True
    if finding.quantize.startswith("nf4"):
        model["quantize_base"] = True
    settings: dict[str, object] = {
        "model": model,
        "tokenizer": {"max_seq_len": finding.max_length},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": finding.learning_rate, "weight_decay": 0.0},
        "lr_scheduler": {"_component_": _SCHEDULES[training.schedule], "num_warmup_steps": training.warmup_steps},
        "batch_size": training.batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "epochs": epochs,
        "max_steps_per_epoch": math.ceil(training.steps / epochs),
        "clip_grad_norm": training.max_grad_norm,
        "enable_activation_checkpointing": training.checkpointing,
        "dtype": "bf16" if finding.dtype == "bfloat16" else "fp32",
    }
    return yaml_document([*finding.notes, *translated, *_unsaid(finding, epochs)], settings)


def _unsaid(finding: Finding, epochs: int) -> list[str]:
    model = f"the base model is {finding.base_model}" + ("" if finding.revision is None else f" at {finding.revision}")
    unsaid = [
        f"{model}: take torchtune's LoRA configuration of it (see tune ls; tune cp llama3_2/1B_lora_single_device "
        "mine.yaml, say), and put these lines in place of its own; all others stay, model._component_ among them"
    ]
    # Its data sets differ in what they learn by default.
    if finding.learn_prompts:
        unsaid.append("prompts were learned, too: give dataset train_on_input: true")
    else:
        unsaid.append("completions alone were learned: give dataset train_on_input: false")
    if epochs > 1:
        unsaid.append(
            f"the comparison took {finding.settings.steps} steps; torchtune counts them by the epoch, rounded"
        )
    if finding.quantize == "nf4":
        unsaid.append("nf4: torchtune rounds the scales of blocks, too, as nf4-double does")
    elif finding.quantize == "int8":
        unsaid.append("int8 has no word here: the base model is not quantised")
    return unsaid
