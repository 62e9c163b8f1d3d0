"""A Python script that trains with Unsloth and TRL."""

from __future__ import annotations

from collections.abc import Mapping

from rankwise.export.document import commented
from rankwise.export.finding import Finding
from rankwise.export.words import BASE_DROPOUT, eight_bits_differ, number, transformers_arguments


def unsloth_script(finding: Finding) -> str:
    targets = finding.recommendation.target_modules
    four_bits, eight_bits = finding.quantize.startswith("nf4"), finding.quantize == "int8"
    loading: dict[str, object] = {
        "model_name": finding.base_model,
        "max_seq_length": finding.max_length,
        "load_in_4bit": four_bits,
        "load_in_8bit": eight_bits,
        "load_in_16bit": not (four_bits or eight_bits),
    }
    if finding.revision is not None:
        loading["revision"] = finding.revision
    adapting = {
        "r": finding.rank,
        "lora_alpha": number(finding.alpha),
        "use_rslora": finding.use_rslora,
        "lora_dropout": 0.0,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "use_gradient_checkpointing": "unsloth" if finding.settings.checkpointing else False,
    }
    training = transformers_arguments(finding) | {"max_length": finding.max_length}
    if finding.dtype == "float32":
        del training["bf16"]  # Unsloth refuses a precision other than its own
    return (
        commented([*finding.notes, *_unsaid(finding)])
        + "from unsloth import FastLanguageModel  # before trl, which it changes\n"
        + "from datasets import load_dataset\n"
        + "from trl import SFTConfig, SFTTrainer\n\n"
        + 'dataset = load_dataset("json", data_files="train.jsonl", split="train")  # yours\n\n'
        + f"model, tokenizer = FastLanguageModel.from_pretrained(\n{_arguments(loading)})\n"
        + f"model = FastLanguageModel.get_peft_model(\n    model,\n{_arguments(adapting)})\n"
        + "trainer = SFTTrainer(\n    model=model,\n    processing_class=tokenizer,\n    train_dataset=dataset,\n"
        + f"    args=SFTConfig(\n{_arguments(training, indent=8)}    ),\n)\ntrainer.train()\n"
    )


def _arguments(values: Mapping[str, object], indent: int = 4) -> str:
    return "".join(f"{' ' * indent}{name}={value!r},\n" for name, value in values.items())


def _unsaid(finding: Finding) -> list[str]:
    unsaid = eight_bits_differ(finding, "Unsloth")
    if finding.quantize == "nf4":
        unsaid.append("nf4: Unsloth rounds the scales of blocks, too, as nf4-double does")
    if finding.dtype == "float32":
        unsaid.append("the comparison computed in float32; Unsloth computes in 16 bits, of the kind that the GPU has")
    if finding.learn_prompts:
        learned = "prompts were learned, too: for prompt and completion columns add completion_only_loss=False"
    else:
        learned = "completions alone were learned: for a messages column add assistant_only_loss=True"
    return [*unsaid, BASE_DROPOUT, f"{learned} to SFTConfig"]
