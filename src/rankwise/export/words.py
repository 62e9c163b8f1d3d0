"""What several trainers say in the same words, and what none of them has a word for."""

from __future__ import annotations

from rankwise.errors import UserError, shortened
from rankwise.export.finding import Finding


def transformers_arguments(finding: Finding) -> dict[str, object]:
    """The training in the words of transformers' `TrainingArguments`.

    Steps, not epochs and ratios: they are what was measured, and a ratio of warm-up steps has another name in
    each major version.
    """
    settings = finding.settings
    return {
        "learning_rate": finding.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup_steps,
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": 0.0,
        "bf16": finding.dtype == "bfloat16",
    }


def number(value: float) -> int | float:
    """A whole number as one: trainers declare alpha an integer."""
    return int(value) if value == int(value) else value


def whole_alpha(alpha: float) -> tuple[int, list[str]]:
    """The nearest whole alpha, for a trainer that takes no other, and what that changes."""
    whole = max(1, round(alpha))
    if whole == alpha:
        return whole, []
    return whole, [
        f"alpha is {alpha:.6g}, which must be whole here: {whole} scales by {whole / alpha:.4f} times what was measured"
    ]


def alpha_without_rslora(finding: Finding) -> tuple[float, list[str]]:
    """The alpha that scales by alpha/rank as the measured one does, for a trainer that knows no other rule."""
    if not finding.use_rslora:
        return finding.alpha, []
    alpha = finding.alpha * finding.rank**0.5
    return alpha, [
        f"rsLoRA has no word here: alpha/sqrt(rank) of alpha {finding.alpha:g} is alpha/rank of alpha {alpha:.6g}, "
        "at this rank alone: change both together"
    ]


# A run does not keep its model's configuration, which would tell. torchtune's and litgpt's own models have none.
BASE_DROPOUT = (
    "dropout: the comparison set the base model's own to 0, too: where its config.json has any (GPT-2 and OPT do), "
    "train on a copy with 0 there"
)

CUT_FIRST = "long examples: the comparison cut the beginning of a long prompt first, then the end"


def eight_bits_differ(finding: Finding, how: str) -> list[str]:
    if finding.quantize != "int8":
        return []
    return [f"int8: the comparison rounded weights alone; {how} rounds activations in the products, too"]


_KINDS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "projection",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "lm_head": "head",
}
_MLP = {"gate", "up", "down"}


def adapted_kinds(finding: Finding, trainer: str) -> set[str]:
    """Which kinds of layers are adapted, in every block: query, key, value, projection, mlp, head.

    For a trainer that has a switch for each kind and no names. Raises `UserError` where switches cannot say it.
    """
    asked = finding.recommendation.target_modules
    by_name = asked == "all-linear" or (not isinstance(asked, str) and not any("." in name for name in asked))
    if not by_name:
        raise UserError(
            f"{trainer} adapts kinds of layers, in every block, not {shortened(asked)}: give --to peft, or trl"
        )
    leaves = {target.rsplit(".", 1)[-1] for target in finding.targets}
    unknown = sorted(leaves - set(_KINDS))
    kinds = {_KINDS[leaf] for leaf in leaves - set(unknown)}
    if unknown:
        raise UserError(
            f"{trainer} has no name for the adapted layers {', '.join(unknown)[:200]}: give --to peft, or trl"
        )
    if kinds & _MLP:
        if not kinds >= _MLP:
            named = ", ".join(sorted(leaf for leaf in leaves if _KINDS[leaf] in _MLP))
            raise UserError(f"{trainer} adapts an MLP's three layers together, not {named}: give --to peft, or trl")
        kinds = kinds - _MLP | {"mlp"}
    return kinds
