"""Every command's help ends with an example that works when pasted; completion is installed, and quick."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from rankwise.cli.main import app, main
from rankwise.tasks.splits import TEST_SHARE, VALIDATION_SHARE
from tests.compare.runs import given_costs
from tests.export.runs import made_run

PROGRAM = Path(sys.executable).with_name("rankwise")
ROOT = get_command(app)
assert isinstance(ROOT, TyperGroup)
COMMANDS = ROOT.commands
# What makes an example cheap that trains; `demo` and `probe` have nothing of the kind, so their examples are parsed,
# and run as slow tests.
SMALL = ("--max-train-examples", "64", "--max-validation-examples", "16", "--max-test-examples", "16")
CHEAPER = {"compare": ("--plan", "--pack-size", "1", *SMALL)}
TRAINS = ("compare", "demo", "probe")


def examples(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The words of each line below the last head of the command's help."""
    monkeypatch.setattr(sys, "argv", ["rankwise", command, "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main()
    *_, last = capsys.readouterr().out.split("Example:\n")
    lines = [shlex.split(line) for line in last.splitlines()]
    assert lines
    assert all(words[:2] == ["rankwise", command] for words in lines)
    return lines


def run(words: list[str], place: Path, *more: str) -> None:
    """Run it in an empty directory, without a hub."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words, *more]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_that_can_be_parsed(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in examples(command, monkeypatch, capsys):
        COMMANDS[command].make_context(command, words[2:])


@pytest.mark.parametrize("command", [command for command in COMMANDS if command in CHEAPER or command not in TRAINS])
def test_examples_work_where_they_are_quick(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made_run(tmp_path / "runs/demo")  # of which some speak
    for words in examples(command, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [*words, *CHEAPER.get(command, ())])
        with given_costs(), pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINS)
def test_examples_that_train_work(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words in examples(command, monkeypatch, capsys):
        run(words, tmp_path)


def test_completion_is_installed_and_completes_in_bash(tmp_path: Path) -> None:
    home = os.environ | {"HOME": str(tmp_path), "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
    # Typer looks for a shell among its parents, and `bash -c` would give way to a command that is its last.
    install = "rankwise --install-completion bash; exit $?"
    subprocess.run(["bash", "--norc", "-c", install], env=home, capture_output=True, check=True)
    complete = "source ~/.bashrc; COMP_WORDS=(rankwise est); COMP_CWORD=1; _rankwise_completion rankwise"
    done = subprocess.run(
        ["bash", "--norc", "-c", f'{complete}; echo "${{COMPREPLY[@]}}"; complete -p rankwise'],
        env=home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == "estimate"
    assert "_rankwise_completion rankwise" in done.stdout.splitlines()[1]


@pytest.mark.parametrize(("typed", "completed"), [("est", "estimate"), ("estimate --gp", "--gpu")])
def test_completing_does_not_wait_for_torch(typed: str, completed: str) -> None:
    words = f"rankwise {typed}"
    environment = {"_RANKWISE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(PROGRAM)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [completed]
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert imported.isdisjoint({"torch", "transformers", "pandas", "scipy"})


def test_what_is_cut_from_train_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["rankwise", "compare", "--help"])
    with pytest.raises(SystemExit):
        main()
    said = " ".join(capsys.readouterr().out.split())
    assert f"Test data [{TEST_SHARE:.0%} of train]".replace("%", " %") in said
    assert f"Validation data [{VALIDATION_SHARE:.0%} of train, after test".replace("%", " %") in said


@pytest.mark.parametrize(("command", "name"), [("compare", "run"), ("probe", "examples"), ("compare", "params")])
def test_what_is_a_command_s_own_is_no_part_of_a_file(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(f"task: docmatch\n{name}: 3\njson: true\n")
    monkeypatch.setattr(sys, "argv", ["rankwise", command, str(tmp_path / "c.yaml")])
    with pytest.raises(SystemExit, match="2"):
        main()
    names = ", ".join(sorted(("json", name)))
    assert capsys.readouterr().err.endswith(
        f"c.yaml: {names}: no option of a comparison, but of a command; leave it out of the file\n"
    )
