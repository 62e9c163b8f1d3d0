"""How the command line, a file and a run that goes on make one configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise.cli.options import configured
from rankwise.compare.config import ComparisonConfig
from rankwise.errors import UserError


def begun(directory: Path, **options: Any) -> Path:
    config = ComparisonConfig(**{"train": "train.csv"} | options)
    (directory / "comparison.json").write_text(json.dumps({"config": config.to_dict()}))
    return directory


def written(directory: Path, text: str) -> Path:
    file = directory / "comparison.yaml"
    file.write_text(f"train: train.csv\n{text}")
    return file


def test_a_run_on_a_cluster_goes_on_here(tmp_path: Path) -> None:
    run = begun(tmp_path, backend="ray", address="ray://head:10001")
    assert configured(None, {}, begun=run).address == "ray://head:10001"
    here = configured(None, {"backend": "local"}, begun=run)
    assert (here.backend, here.address) == ("local", None)
    with pytest.raises(UserError, match="address: only backend ray has one"):
        configured(None, {"backend": "local", "address": "auto"}, begun=run)


def test_full_fine_tuning_is_taken_back(tmp_path: Path) -> None:
    run = begun(tmp_path, full_learning_rates="1e-5")
    assert configured(None, {}, begun=run).full_learning_rates == (1e-5,)
    assert configured(None, {"full_learning_rates": "none"}, begun=run).full_learning_rates is None


@pytest.mark.parametrize(
    ("text", "options", "scalings"),
    [
        ("rslora: true\n", {"scalings": "alpha/rank"}, ("alpha/rank",)),
        ("rslora: true\n", {}, ("rslora",)),
        ("scalings: [alpha/rank, rslora]\n", {"rslora": True}, ("rslora",)),
        ("", {"rslora": True}, ("rslora",)),
    ],
)
def test_what_scales_is_overridden_however_it_is_said(
    text: str, options: dict[str, Any], scalings: tuple[str, ...], tmp_path: Path
) -> None:
    assert configured(written(tmp_path, text), options).scalings == scalings


def test_both_ways_to_say_it_are_refused(tmp_path: Path) -> None:
    line = "the command line: rslora and scalings are both given: leave one out"
    with pytest.raises(UserError, match=line):
        configured(None, {"train": "train.csv", "rslora": True, "scalings": "alpha/rank"})


def test_a_run_over_data_in_memory_goes_on_with_a_file_or_in_python(tmp_path: Path) -> None:
    run = begun(tmp_path, train=pd.DataFrame({"text": ["a"], "label": [0]}))
    with pytest.raises(UserError, match="train: the run began in Python, with data in memory; go on there"):
        configured(None, {}, begun=run)
    assert configured(None, {"train": "train.csv"}, begun=run).train == "train.csv"
