"""`rankwise probe` as a user runs it, on a tiny model and task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import transformers

from rankwise.cli.main import main
from rankwise.spectrum import probe as probe_module
from tests.data import write_sentences
from tests.models import save_model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(probe_module, "_STEPS", 6)
    monkeypatch.setattr(probe_module, "_POINTS", (0, 3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_model(tmp_path / "model", "bert")
    write_sentences(tmp_path / "train.csv", 120)
    lines = ("model: model", "train: train.csv", "text: sentence", "batch-size: 8", "max-length: 16", "ranks: 2,4")
    (tmp_path / "task.yaml").write_text("\n".join((*lines, "seeds: 2", "epochs: 1")))
    return tmp_path


def rankwise(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rankwise", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.usefixtures("place")
def test_a_comparison_s_own_file_is_probed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("probe", "task.yaml", "--examples", "32", "--learning-rates", "0.01", "--device", "cpu")
    assert rankwise(monkeypatch, *arguments, "--params", "8000") == 0
    shown = capsys.readouterr()
    rows = {line.split("  ")[0]: line.split() for line in shown.out.splitlines()}
    assert rows["gradient, step 3"][3:4] == rows["update, 6 steps"][3:4] == ["13"]
    assert "  attention.self.query" in shown.out
    assert "Next: rankwise compare … --ranks " in shown.out
    assert "no measurement" in shown.out
    assert "Poor alone" in shown.out
    assert "rank_pattern = {" in shown.out
    assert "warming up on the other half" in shown.err
    assert rankwise(monkeypatch, *arguments, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert f"Look around rank {document['rank']}" in shown.out
    assert f"--ranks {','.join(map(str, document['ranks']))}" in shown.out
    assert document["examples"] == 32
    assert document["pattern"] is None
    assert document["seconds"] > 0


def test_a_language_model_is_probed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(place / "writer", "llama", transformers.AutoModelForCausalLM.from_config)
    lines = [json.dumps({"prompt": f"say {number}", "completion": f"{number} it is"}) for number in range(60)]
    (place / "said.jsonl").write_text("\n".join(lines))
    options = ("--task", "instruction", "--model", "writer", "--train", "said.jsonl", "--max-length", "32")
    assert rankwise(monkeypatch, "probe", *options, "--batch-size", "4", "--examples", "16", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["capacity_bits"] > 48 * 6
    assert document["rank"] in document["ranks"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("task.yaml", "--examples", "12"), "examples: 12 make no two batches of 8, one for each half"),
        (("task.yaml", "--examples", "-5"), "examples: -5 make no two batches of 8"),
        (("task.yaml", "--params", "100"), "params: rank 1 everywhere takes"),
        (("task.yaml", "--group", "document"), "no column 'document'; its columns are 'sentence', 'label'"),
        (("--ranks", "4"), "--ranks"),
        ((), "no training data"),
    ],
)
@pytest.mark.usefixtures("place")
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rankwise(monkeypatch, "probe", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("rankwise: ")
    assert said in printed.err
