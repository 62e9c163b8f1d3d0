"""The model card of an exported adapter: what it is, why it has this rank, how to use it."""

from __future__ import annotations

import re
from dataclasses import replace

from rankwise.export.finding import Finding
from rankwise.export.serving import serving_line
from rankwise.records import RankComparison
from rankwise.report.markdown import escaped
from rankwise.report.notebook import markdown


def model_card(finding: Finding, repository: str) -> str:
    """Markdown with the hub's metadata before it."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        base_model=None if finding.is_local else finding.base_model,
        library_name="peft",
        pipeline_tag="text-generation" if finding.causal else "text-classification",
        tags=["lora", "peft", "rankwise"],
    )
    comparison = _shown(finding.comparison, finding)
    return f"""---
{metadata.to_yaml()}
---

# LoRA adapter of rank {finding.rank} for {escaped(finding.model_name)}

{escaped(finding.notes[0])}.

## Training

{_training(finding)}

## Why this rank

Task {escaped(comparison.task)}, compared by rankwise:

{markdown(comparison)}

## Use

{_use(finding, repository)}
"""


def _shown(comparison: RankComparison, finding: Finding) -> RankComparison:
    """What may be read by everybody: nothing of this machine's directories."""
    return replace(
        comparison,
        model=finding.model_name,
        notes=tuple(_without_places(note, finding) for note in comparison.notes),
        over=tuple(_shown(other, finding) for other in comparison.over),
    )


def _without_places(note: str, finding: Finding) -> str:
    """A note without the directories of this machine, which are nobody's business."""
    return re.sub(r"(?<![^\s:(])/(?:[^\s/]+/)+", "", note.replace(finding.base_model, finding.model_name))


def _training(finding: Finding) -> str:
    settings, targets = finding.settings, finding.recommendation.target_modules
    scaling = "alpha/sqrt(rank)" if finding.use_rslora else "alpha/rank"
    stored = finding.dtype if finding.quantize == "none" else f"{finding.quantize}, computed in {finding.dtype}"
    lines = [
        f"rank {finding.rank}, alpha {finding.alpha:g}, scaling {scaling}, dropout 0",
        f"target modules: {targets if isinstance(targets, str) else ', '.join(targets)}",
        f"base model: {finding.model_name}{_revision(finding)}, in {stored}",
        f"learning rate {finding.learning_rate:g}, {settings.schedule}, {settings.warmup_steps} warm-up steps",
        f"{settings.steps} steps of {settings.batch_size * settings.accumulation} examples, "
        f"cut to {finding.max_length} tokens, gradients clipped to the norm {settings.max_grad_norm:g}",
    ]
    if finding.labels:
        lines.append("classes: " + ", ".join(f"{number} is {label}" for number, label in enumerate(finding.labels)))
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _revision(finding: Finding) -> str:
    return "" if finding.revision is None else f" at {finding.revision}"


def _use(finding: Finding, repository: str) -> str:
    kind = "CausalLM" if finding.causal else "SequenceClassification"
    classes = "" if finding.causal else f", num_labels={len(finding.labels)}"
    code = f"""```python
from peft import AutoPeftModelFor{kind}

model = AutoPeftModelFor{kind}.from_pretrained("{repository}"{classes})
```"""
    parts = [code]
    if finding.is_local:
        parts.append(
            f"The base model was a directory, {escaped(finding.model_name)}: put its place into `adapter_config.json`."
        )
    if finding.causal:
        parts.append(escaped(serving_line(finding.rank)) + ".")
    return "\n\n".join(parts)
