"""`rankwise export` as a user runs it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig

from rankwise.cli.main import main
from tests.export.runs import made_run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a space in its name and the run that the examples speak of."""
    place = tmp_path / "a user's place"
    made_run(place / "runs/demo")
    monkeypatch.chdir(place)
    return place


def rankwise(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rankwise", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize("trainer", ["trl", "axolotl", "llama-factory", "torchtune", "litgpt", "unsloth"])
def test_a_text_is_printed_and_what_it_is_beside_it(
    trainer: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rankwise(monkeypatch, "export", "runs/demo", "--to", trainer) == 0
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert re.match(r"rankwise: (YAML|a Python script) .*; resolved: rank 16, measured by rankwise", printed.err)
    if trainer == "unsloth":
        compile(printed.out, "a script", "exec")
    else:
        assert isinstance(yaml.safe_load(printed.out), dict)
    assert rankwise(monkeypatch, "export", "runs/demo", "--to", trainer, "--out", "new/file.txt") == 0
    assert (place / "new/file.txt").read_text() == printed.out
    assert capsys.readouterr().out == "new/file.txt\n"


def test_the_example_of_the_help_works_when_pasted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rankwise(monkeypatch, "export", "--help") == 0
    (example,) = re.findall(r"^ *rankwise (export .*)$", capsys.readouterr().out, re.MULTILINE)
    assert rankwise(monkeypatch, *shlex.split(example)) == 0
    written = capsys.readouterr().out.strip()
    assert LoraConfig.from_pretrained(str(place / written)).r == 16


def test_a_dry_run_tells_the_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rankwise(monkeypatch, "export", "runs/demo", "--to", "hub:me/thing", "--dry-run") == 0
    printed = capsys.readouterr()
    assert (place / printed.out.strip() / "README.md").is_file()
    assert "rankwise: vLLM serves rank 16 with --max-lora-rank 16; it accepts 1, 8, 16, 32" in printed.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nowhere", "--to", "trl"), "nowhere is not a run directory: give the directory that rankwise compare was"),
        (("runs/demo", "--to", "keras"), "to: 'keras' is not one of peft, trl, axolotl"),
        (("runs/demo", "--to", "hub:me"), "hub:me names no repository: give hub:USER/NAME"),
        (("runs/demo", "--to", "trl", "--out", "runs"), "out: runs exists; remove it, or give another --out"),
        (("runs/demo",), "Missing option '--to'"),
    ],
)
def test_an_error_is_one_line(
    arguments: tuple[str, ...],
    line: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rankwise(monkeypatch, "export", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"rankwise: {line}")
    assert printed.err.count("\n") == 1
