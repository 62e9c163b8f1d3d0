"""The example runs as it stands, at a small size."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rankwise import run_rank_comparison
from tests.compare.runs import given_costs
from tests.models import save_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "rank_comparison.py"


def test_ranks_times_and_steps_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("rank_comparison", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    small = {"max_train_examples": 40, "max_validation_examples": 20, "max_test_examples": 40, "steps": 3, "seeds": 2}
    config = replace(example.CONFIG, model=str(save_model(tmp_path / "model", "bert")), dtype="float32", **small)
    with given_costs():
        example.show(run_rank_comparison(config, run=tmp_path / "run"))
    shown = capsys.readouterr().out
    assert re.findall(r"^ +(\d+) +[\d.]+ +0\.00\d", shown, re.MULTILINE) == ["4", "8", "16", "32"]
    assert re.findall(r"rank (\d+) to (\d+): [+-]", shown) == [("4", "8"), ("8", "16"), ("16", "32")]
