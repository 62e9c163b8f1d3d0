"""A directory for PEFT: the `LoraConfig` to train with, and the training in transformers' words."""

from __future__ import annotations

import json
from pathlib import Path

from peft import LoraConfig

from rankwise.errors import RunError, reason_of
from rankwise.export.finding import Finding
from rankwise.export.words import number, transformers_arguments
from rankwise.records.plain import value_of
from rankwise.report.markdown import escaped


def write_peft(directory: Path, finding: Finding) -> None:
    """Write `adapter_config.json`, `training_arguments.json` and `README.md` into an empty directory.

    The configuration is the trained adapter's own, with the layers by their whole names, and without weights: what
    `get_peft_model` trains anew. `TrainingArguments(**…)` takes what is in the second file.
    """
    adapter = finding.comparison.adapter
    try:
        config = LoraConfig.from_pretrained(str(adapter))
        excluded = value_of(tuple[str, ...], sorted(config.exclude_modules or ()))
    # PEFT checks what it reads in ways of its own, and the file may be anybody's.
    except Exception as error:
        raise RunError(
            f"{adapter / 'adapter_config.json'} is damaged ({reason_of(error)}); restore it from a copy"
        ) from error
    config.r, config.lora_alpha, config.use_rslora = finding.rank, number(finding.alpha), finding.use_rslora
    # PEFT reads lists as sets, of no fixed order.
    config.target_modules, config.exclude_modules = list(finding.targets), list(excluded) or None
    config.inference_mode = False
    config.save_pretrained(str(directory))
    training = transformers_arguments(finding)
    if finding.settings.checkpointing:
        training["gradient_checkpointing"] = True
    arguments = json.dumps(training, indent=2)
    (directory / "training_arguments.json").write_text(f"{arguments}\n")
    stored = finding.dtype if finding.quantize == "none" else f"quantised to {finding.quantize}"
    further = [f"examples were cut to {finding.max_length} tokens", f"the base model was in {stored}"]
    notes = "".join(f"- {escaped(note)}\n" for note in (*finding.notes, *further))
    (directory / "README.md").write_text(f"{notes}\n{_use(finding)}", encoding="utf-8")


def _use(finding: Finding) -> str:
    kind = "CausalLM" if finding.causal else "SequenceClassification"
    options = "" if finding.causal else f", num_labels={len(finding.labels)}"
    if finding.revision is not None:
        options += f", revision={finding.revision!r}"
    return f"""In this directory:

```python
import json
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import AutoModelFor{kind}, TrainingArguments

base = AutoModelFor{kind}.from_pretrained({finding.base_model!r}, dtype="{finding.dtype}"{options})
{_NO_DROPOUT}model = get_peft_model(base, LoraConfig.from_pretrained("."))
{_float_heads(finding)}arguments = TrainingArguments("out", **json.loads(Path("training_arguments.json").read_text()))
```
"""


# What `remove_dropout` does, for who has no rankwise.
_NO_DROPOUT = """\
# The comparison trained without the base model's dropout, too.
parts = list(base.modules())
for part in [*parts, *(part.config for part in parts if hasattr(part, "config"))]:
    for name, value in vars(part).items():
        if isinstance(value, float) and (name == "p" or "drop" in name or "jitter" in name):
            setattr(part, name, 0.0)
"""


def _float_heads(finding: Finding) -> str:
    if finding.causal or finding.dtype == "float32":
        return ""
    # PEFT makes A and B float32, and copies the head as the base has it.
    return """\
# The head was trained in float32, as A and B are; a loop of your own needs torch.autocast, which Trainer's bf16 is.
for parameter in model.parameters():
    if parameter.requires_grad:
        parameter.data = parameter.data.float()
"""
