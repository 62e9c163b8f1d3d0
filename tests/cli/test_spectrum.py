"""`rankwise inspect` and `rankwise resize` as a user runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rankwise.cli.main import main
from tests.data import sentences
from tests.export.runs import made_run
from tests.spectrum.adapters import classifier, reconfigure


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return made_run(Path("a run"))


def rankwise(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rankwise", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


def test_inspect_shows_a_row_for_each_kind_of_projection(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rankwise(monkeypatch, "inspect", str(run)) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    (q,) = [row for row in rows if row and row[0] == "self_attn.q_proj"]
    (every,) = [row for row in rows if row and row[0] == "all"]
    assert q[1:3] == ["2", "16"]
    assert every[1:3] == ["14", "16"]
    assert "Trained with rank 16, alpha 32: scaling alpha/rank = 2." in shown
    assert "PEFT's default" not in shown
    reconfigure(run / "adapter", lora_alpha=4)
    assert rankwise(monkeypatch, "inspect", str(run), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["overall"]["rank_99"] == int(every[7])
    assert document["overall"]["stable_rank"] == pytest.approx(float(every[3]), abs=0.051)
    assert len(document["modules"]) == 14


def test_inspect_warns_of_an_alpha_that_nobody_chose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    made_run(tmp_path / "run", answer={"rank": 64, "alpha": 8.0})
    assert rankwise(monkeypatch, "inspect", str(tmp_path / "run")) == 0
    assert "Alpha 8 is PEFT's default, and at rank 64 it scales every update by 0.125" in capsys.readouterr().out


def test_resize_writes_an_adapter_that_can_be_inspected(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rankwise(monkeypatch, "resize", str(run), "--rank", "4", "--out", "smaller") == 0
    shown = capsys.readouterr().out
    (every,) = [line.split() for line in shown.splitlines() if line.startswith("all ")]
    assert every[1:4] == ["14", "16", "4"]
    assert f"{14 * 16 * 56:,} parameters before, {14 * 4 * 56:,} now" in shown
    assert rankwise(monkeypatch, "inspect", "smaller", "--json") == 0
    inspected = json.loads(capsys.readouterr().out)
    assert (inspected["rank"], inspected["alpha"], inspected["scaling"]) == (4, 8, 2)
    arguments = ("resize", str(run), "--energy", "0.6", "--per-layer", "--out", "varied", "--json")
    assert rankwise(monkeypatch, *arguments) == 0
    resized = json.loads(capsys.readouterr().out)
    assert resized["adapter"] == "varied"
    assert all(module["energy"] >= 0.6 for module in resized["modules"])
    assert rankwise(monkeypatch, "inspect", "varied", "--json") == 0
    ranks = [module["rank"] for module in json.loads(capsys.readouterr().out)["modules"]]
    assert ranks == [module["rank"] for module in resized["modules"]]


def test_resize_shows_what_it_changes_on_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    adapter = classifier(tmp_path)
    sentences(40).to_csv("test.csv", index=False)
    how = ("--rank", "1", "--test", "test.csv", "--text", "sentence", "--max-length", "48", "--model", "base")
    assert rankwise(monkeypatch, "resize", str(adapter), "--out", "one", *how) == 0
    printed = capsys.readouterr()
    assert "on 40 test examples" in printed.err
    (nll,) = [line.split() for line in printed.out.splitlines() if line.startswith("NLL  ")]
    assert rankwise(monkeypatch, "resize", str(adapter), "--out", "other", *how, "--json") == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert nll[1:3] == [f"{measured['nll_before']:.3f}", f"{measured['nll']:.3f}"]
    assert nll[3] == f"{measured['nll_change']['mean']:+.4f}".replace("-", "−")
    assert nll[5] == "to"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "nowhere"), "nowhere is not an adapter"),
        (("resize", "a run", "--rank", "17", "--out", "x"), "rank 17 is not one from 1 to 16"),
        (("resize", "a run", "--rank", "4", "--out", "a run"), "a run exists already"),
        (("resize", "a run", "--out", "x"), "needs a rank or a share"),
        (("resize", "a run", "--rank", "4"), "--out"),
        (
            ("resize", "a run", "--rank", "4", "--out", "x", "--text-pair", "b"),
            "text-pair says how test data are scored",
        ),
    ],
)
@pytest.mark.usefixtures("run")
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rankwise(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert said in printed.err
