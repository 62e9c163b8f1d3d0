"""What a run found, with all that training so again takes: the one thing that is put into other trainers' words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankwise.base.quantize import Quantization
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.directory import DAMAGE, read_comparison
from rankwise.errors import RunError, UserError, reason_of
from rankwise.records import RankComparison, Recommendation
from rankwise.records.plain import record_of, value_of
from rankwise.report.text import one_line
from rankwise.train.settings import TrainingSettings


@dataclass(frozen=True)
class Finding:
    """A recommendation with what it was trained with.

    `targets` are the adapted layers' whole names. `base_model` is a hub id, with its `revision`, or an absolute
    directory. `examples` is how many the comparison trained on. `labels` are the classes; a language model has none.
    """

    comparison: RankComparison
    rank: int
    alpha: float
    use_rslora: bool
    learning_rate: float
    targets: tuple[str, ...]
    base_model: str
    revision: str | None
    causal: bool
    dtype: str
    quantize: Quantization
    settings: TrainingSettings
    max_length: int
    learn_prompts: bool
    examples: int
    labels: tuple[str, ...]

    @property
    def recommendation(self) -> Recommendation:
        return self.comparison.recommendation

    @property
    def is_local(self) -> bool:
        """Whether the base model is a directory, which another machine lacks."""
        return Path(self.base_model).is_absolute()

    @property
    def model_name(self) -> str:
        """The base model without the place where this machine has it."""
        return Path(self.base_model).name if self.is_local else self.base_model

    @property
    def passes(self) -> float:
        """How often training saw each of its examples."""
        return self.settings.steps * self.settings.batch_size * self.settings.accumulation / self.examples

    @property
    def notes(self) -> tuple[str, ...]:
        """What the answer is worth, a line each; the first says whether it is one."""
        answer = self.recommendation
        worth = _WORTH.get(answer.status, "UNRESOLVED, until more is known")
        lines = (
            f"{worth}: rank {self.rank}, measured by rankwise for {self.model_name}",
            f"why: {answer.reason}",
            f"holds for: {answer.holds_for}, {self.passes:.2g} passes over them",
            f"unknown: {'; '.join(answer.unknown)}",
        )
        return tuple(one_line(line) for line in lines)


_WORTH = {"resolved": "resolved", "not_plateaued": "NOT PLATEAUED, until a larger rank is tried"}


def read_finding(run: Path) -> Finding:
    """What a finished run recommends.

    Raises `UserError` where the run has not ended or names no rank, `RunError` where its files are damaged.
    """
    comparison = read_comparison(run)
    answer = comparison.recommendation
    if answer.rank is None:
        raise UserError(f"run {run} names no rank, so there is nothing to export: {answer.reason}")
    description = _read(run / "comparison.json")
    adapter = _read(comparison.adapter / "adapter_config.json")
    try:
        return _finding(comparison, description, adapter)
    except DAMAGE as error:
        raise RunError(f"{run / 'comparison.json'} is damaged ({reason_of(error)}); restore it from a copy") from error


def _finding(comparison: RankComparison, description: Mapping[str, Any], adapter: Mapping[str, Any]) -> Finding:
    answer, config, model = comparison.recommendation, description["config"], description["model"]
    assert answer.rank is not None

    def option(name: str) -> Any:
        # An option that the run was begun without did not exist.
        return config.get(name, ComparisonConfig.default(name))

    stored = comparison.base
    if answer.alpha is None or answer.use_rslora is None or answer.learning_rate is None:
        raise ValueError("a rank without alpha, scaling and learning rate")
    if not (answer.rank >= 1 and 0 < answer.alpha < math.inf and 0 < answer.learning_rate < math.inf):
        raise ValueError("a rank, an alpha or a learning rate that is none")
    settings = record_of(
        TrainingSettings,
        {
            "steps": description["steps"],
            "batch_size": option("batch_size"),
            "accumulation": option("gradient_accumulation"),
            "warmup_ratio": option("warmup_ratio"),
            "schedule": option("schedule"),
            "max_grad_norm": option("max_grad_norm"),
            "checkpointing": option("gradient_checkpointing"),
        },
    )
    max_length = value_of(int, config["max_length"])
    examples = value_of(int, description["data"]["train"]["examples"])
    if min(settings.steps, settings.batch_size, settings.accumulation, max_length, examples) < 1:
        raise ValueError("no steps, no batches, no tokens or no examples")
    if not (0 <= settings.warmup_ratio <= 1 and 0 < settings.max_grad_norm < math.inf):
        raise ValueError("a warm-up or a gradient norm that is none")
    return Finding(
        comparison=comparison,
        rank=answer.rank,
        alpha=answer.alpha,
        use_rslora=answer.use_rslora,
        learning_rate=answer.learning_rate,
        targets=value_of(tuple[str, ...], model["targets"]),
        base_model=value_of(str, adapter["base_model_name_or_path"]),
        revision=value_of(str | None, adapter.get("revision")),
        causal=adapter["task_type"] == "CAUSAL_LM",
        dtype=value_of(Literal["float32", "bfloat16"], model["dtype"]),
        quantize="none" if stored in ("float32", "bfloat16") else value_of(Quantization, stored),
        settings=settings,
        max_length=max_length,
        learn_prompts=value_of(bool, option("learn_prompts")),
        examples=examples,
        labels=value_of(tuple[str, ...], description["data"]["labels"]),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file} is missing or damaged ({reason_of(error)}); restore it from a copy") from error
    if not isinstance(document, dict):
        raise RunError(f"{file} is damaged (no JSON object); restore it from a copy")
    return document
