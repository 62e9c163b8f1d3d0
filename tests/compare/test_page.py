"""What a run hands to its page: its trials, its set-up, and the command that begins it again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.main import get_command

from rankwise.cli.main import app
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.page import command_of, write_page
from rankwise.errors import UserError
from tests.export.runs import made_run


def parsed(command: str) -> ComparisonConfig:
    """The configuration that the command line makes of a command."""
    program, name, *words = shlex.split(command)
    assert program == "rankwise"
    context = get_command(app).commands[name].make_context(name, words)  # type: ignore[attr-defined]
    given = {option: value for option, value in context.params.items() if value is not None}
    own = ("file", "run", "resume", "plan", "require_resolved", "json")
    return ComparisonConfig.from_mapping({key: given[key] for key in given if key not in own}, "a test")


@pytest.mark.parametrize(
    "options",
    [
        {"task": "docmatch"},
        {"train": "my 'data'.csv", "text": "a b", "ranks": (4, 8), "learning_rates": (1e-4, 3.3e-4), "seeds": 5},
        {"train": Path("d/train.jsonl"), "task": "instruction", "model": "m", "quantize": "nf4", "learn_prompts": True},
        {"train": "t.csv", "scalings": ("alpha/rank", "rslora"), "target_modules": ("query", "value"), "alpha": 16.0},
        {"task": "docmatch", "strategy": "escalate", "budget": 1800.0, "trust_remote_code": True},
    ],
)
def test_the_command_begins_the_same_comparison(options: dict[str, Any]) -> None:
    config = ComparisonConfig(**options)
    again = parsed(command_of(config.to_dict()))
    assert again.to_dict() == config.to_dict()


def test_data_in_memory_are_named_as_such() -> None:
    config = ComparisonConfig(train=pd.DataFrame({"text": ["a"], "label": [0]}))
    assert "--train FILE" in command_of(config.to_dict())


def test_a_run_from_before_there_were_pages_gets_one(tmp_path: Path) -> None:
    page = write_page(made_run(tmp_path / "run"))
    assert page == tmp_path / "run/report.html"
    assert "Rank 16 is enough." in page.read_text()


def test_a_run_that_has_not_ended_has_none(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(UserError, match="has not ended: go on with it"):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()
