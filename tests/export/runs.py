"""Finished runs made by hand: what `rankwise export` reads of one, and no more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Generator, randn

from rankwise.compare.config import ComparisonConfig
from rankwise.export.finding import Finding, read_finding
from rankwise.records import RankComparison
from tests.report.samples import COMPARISON

LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def layer_names(leaves: Sequence[str], blocks: int = 2) -> list[str]:
    return [
        f"model.layers.{block}.{'mlp' if leaf in LEAVES[4:] else 'self_attn'}.{leaf}"
        for block in range(blocks)
        for leaf in leaves
    ]


def made_run(
    directory: Path,
    *,
    causal: bool = True,
    base_model: str = "owner/model",
    revision: str | None = "0a1b2c3d",
    base: str = "bfloat16",
    dtype: str = "bfloat16",
    leaves: Sequence[str] = LEAVES,
    targets: Sequence[str] | None = None,
    answer: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    modules_to_save: list[str] | None = None,
    comparison: RankComparison = COMPARISON,
) -> Path:
    """A run of 200 steps of 8 of 2,000 examples; `answer` changes its recommendation, `config` its configuration."""
    answer = {"status": "resolved", "rank": 16, "alpha": 32.0} | dict(answer or {})
    task = "instruction" if causal else "classification"
    comparison = replace(
        comparison,
        model=base_model,
        task=task,
        base=base,
        recommendation=replace(comparison.recommendation, **answer),
    )
    options = {"model": base_model, "task": task, "train": "train.jsonl", "batch_size": 8, "steps": 200} | dict(
        config or {}
    )
    targets = list(targets or layer_names(leaves))
    description = {
        "config": ComparisonConfig.from_mapping(options, "a test").to_dict(),
        "model": {"revision": revision, "dtype": dtype, "device": "cuda", "targets": targets, "trained_modules": []},
        "data": {"labels": [] if causal else ["no", "y|e_s"], "train": {"examples": 2000, "sha256": "0"}},
        "steps": options["steps"],
        "versions": {},
        "hardware": {},
    }
    directory.mkdir(parents=True)
    (directory / "experiments.json").write_text(json.dumps(comparison.to_dict()))
    (directory / "comparison.json").write_text(json.dumps(description))
    recommendation = comparison.recommendation
    LoraConfig(
        task_type="CAUSAL_LM" if causal else "SEQ_CLS",
        inference_mode=True,
        base_model_name_or_path=base_model,
        revision=revision,
        r=recommendation.rank or 1,
        lora_alpha=recommendation.alpha or 1,
        use_rslora=bool(recommendation.use_rslora),
        target_modules=targets,
        modules_to_save=modules_to_save,
    ).save_pretrained(str(directory / "adapter"))
    generator, rank = Generator().manual_seed(0), recommendation.rank or 1
    tensors = {}
    for target in targets:
        tensors[f"base_model.model.{target}.lora_A.weight"] = randn(rank, 24, generator=generator)
        tensors[f"base_model.model.{target}.lora_B.weight"] = randn(32, rank, generator=generator)
    save_file(tensors, directory / "adapter" / "adapter_model.safetensors")
    return directory


def finding(directory: Path, **changed: Any) -> Finding:
    return read_finding(made_run(directory, **changed))
