"""The program as a user runs it: its output, its exit code, and where that tells, its own process."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from rankwise.cli.main import main
from tests.compare.runs import given_costs
from tests.data import sentences, write_sentences
from tests.models import save_model

RANKWISE = (sys.executable, "-m", "rankwise")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a space in its name, a model and data in it."""
    place = tmp_path_factory.mktemp("a user's place")
    save_model(place / "model", "bert")
    write_sentences(place / "train.csv", 200)
    return place


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}


def rankwise(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RANKWISE, *arguments], cwd=place, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


class Terminal:
    """Runs the program here, which spares it the start; in the place and on a terminal of 80 columns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def run(self, *arguments: str) -> tuple[object, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["rankwise", *arguments])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        printed = self.capfd.readouterr()
        return left.value.code, printed.out, printed.err

    def succeed(self, *arguments: str) -> str:
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return out


@pytest.fixture
def terminal(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    with given_costs():
        yield Terminal(monkeypatch, capfd)


COMPARE = (
    *("compare", "--model", "model", "--train", "train.csv", "--text", "sentence", "--ranks", "2,4"),
    *("--learning-rates", "1e-3,5e-3", "--seeds", "2", "--batch-size", "8", "--max-length", "48"),
)


def test_json_is_one_document_on_standard_output(place: Path) -> None:
    done = rankwise(place, *COMPARE, "--steps", "5", "--run", "runs/json", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document)[:8] == ["run", "model", "task", "experiments", "baseline", "wall_seconds", "adapter", "notes"]
    assert [set(experiment) for experiment in document["experiments"]] == [
        {
            *("rank", "alpha", "use_rslora", "learning_rate", "trainable_params", "accuracy", "accuracy_low"),
            *("accuracy_high", "nll", "macro_f1", "mcc", "training_time_seconds", "peak_memory_bytes", "seeds"),
            *("verdict", "difference", "difference_low", "difference_high", "simultaneous_low", "simultaneous_high"),
            *("retained_nll", "forgetting", "forgetting_low", "forgetting_high"),
        }
    ] * 2
    assert set(document["baseline"]) == {"accuracy", "nll", "retained_nll"}
    wanted = {
        *("status", "rank", "alpha", "use_rslora", "learning_rate", "margin", "keep", "metric", "reason", "needed"),
    }
    assert wanted <= set(document["recommendation"])
    assert json.loads((place / "runs/json/recommendation.json").read_text()) == document["recommendation"]
    assert (place / document["adapter"] / "adapter_model.safetensors").is_file()
    assert "Warning" not in done.stderr
    assert "training" in done.stderr


def test_a_flag_takes_the_place_of_what_a_file_says_otherwise(place: Path, terminal: Terminal) -> None:
    data = "train: train.csv\ntext: sentence\nmodel: model\nmax-length: 16\n"
    (place / "keep.yaml").write_text(f"{data}keep: 0.9\nepochs: 1\n")
    options = ("keep.yaml", "--margin", "0.01", "--steps", "3", "--ranks", "2", "--run", "runs/margin", "--json")
    terminal.succeed("compare", *options)
    kept = json.loads((place / "runs/margin/comparison.json").read_text())["config"]
    assert (kept["margin"], kept["keep"], kept["steps"], kept["epochs"]) == (0.01, 0.95, 3, None)


def test_a_margin_is_not_read_in_another_unit(place: Path, terminal: Terminal) -> None:
    (place / "points.yaml").write_text("train: train.csv\nmetric: accuracy\nmargin: 0.05\n")
    code, _, errors = terminal.run("compare", "points.yaml", "--metric", "nll")
    assert code == 2
    assert errors == (
        "rankwise: metric: the margin of 0.05 is of another one; give --margin, in nats, for nll, or --keep\n"
    )
    terminal.succeed(*COMPARE, "--steps", "3", "--run", "runs/metrics", "--metric", "accuracy", "--margin", "0.05")
    code, _, errors = terminal.run("compare", "--run", "runs/metrics", "--resume", "--metric", "nll")
    assert (code, "give --margin, in nats" in errors) == (2, True)
    terminal.succeed("compare", "--run", "runs/metrics", "--resume", "--metric", "nll", "--keep", "0.9")


def test_a_configuration_file_takes_every_option_and_flags_override_it(place: Path, terminal: Terminal) -> None:
    (place / "c.yaml").write_text(
        "model: model\ntrain: train.csv\ntext: sentence\nranks: [2, 4]\nlearning-rates: [1.0e-3]\nseeds: 2\n"
        "steps: 500\nbatch-size: 8\nmax-length: 48\nrslora: true\nalpha: 2rank\n"
    )
    out = terminal.succeed("compare", "c.yaml", "--steps", "3", "--ranks", "2", "--run", "runs/yaml", "--json")
    (experiment,) = json.loads(out)["experiments"]
    assert (experiment["rank"], experiment["alpha"], experiment["use_rslora"]) == (2, 4.0, True)
    assert json.loads((place / "runs/yaml/comparison.json").read_text())["steps"] == 3


def test_the_table_and_where_everything_is(terminal: Terminal) -> None:
    out = terminal.succeed(*COMPARE, "--steps", "3", "--run", "runs/table")
    assert re.search(r"^ +4 +16 +[\d,]+ +\d+\.\d % \(", out, re.MULTILINE)
    whose = ": no rank is named, so the best of all on validation"
    assert out.splitlines()[-2:] == ["run      runs/table", f"adapter  runs/table/adapter{whose}"]
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_an_unresolved_answer_is_an_error_only_where_a_resolved_one_is_required(terminal: Terminal) -> None:
    one_seed = (*COMPARE, "--seeds", "1", "--steps", "3", "--run", "runs/one seed")
    out = terminal.succeed(*one_seed)
    assert "unresolved: no rank yet" in out
    assert out.endswith("adapter  runs/one seed/adapter: no rank is named, so the best of all on validation\n")
    assert "train with --seeds 3 or more" in " ".join(out.split())
    code, out, _ = terminal.run(*one_seed, "--resume", "--require-resolved", "--json")
    assert code == 3
    assert json.loads(out)["recommendation"]["status"] == "unresolved"


@pytest.mark.parametrize(("status", "code"), [("resolved", 0), ("not_plateaued", 3), ("no_gain", 3)])
def test_nothing_but_a_resolved_answer_is_taken_for_one(
    status: str, code: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = SimpleNamespace(recommendation=SimpleNamespace(status=status))
    monkeypatch.setattr("rankwise.cli.show.show_comparison", lambda config, **options: answered)
    assert terminal.run(*COMPARE, "--require-resolved")[0] == code


def test_a_base_in_4_bits_is_trained_beside_without_a_stray_line(place: Path) -> None:
    """bitsandbytes would tell of kernels that could be fetched from a hub."""
    pytest.importorskip("bitsandbytes")
    save_model(place / "wide", "bert", hidden_size=64, intermediate_size=128)
    options = ("--model", "wide", "--quantize", "nf4", "--steps", "5", "--run", "runs/nf4", "--json")
    done = rankwise(place, *COMPARE, *options)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["experiments"]) == 2
    told = [line for line in done.stderr.splitlines() if line.strip()]
    assert [line for line in told if "kernels" in line or "Warning" in line or "warn" in line] == []
    assert json.loads((place / "runs/nf4/comparison.json").read_text())["config"]["quantize"] == "nf4"


def test_a_plan_starts_nothing(place: Path, terminal: Terminal) -> None:
    before = sorted(place.glob("runs/*"))
    out = terminal.succeed(*COMPARE, "--steps", "1000", "--plan")
    assert "8 to begin with, of up to 1,000 steps each, in 1 pack" in " ".join(out.split())
    assert sorted(place.glob("runs/*")) == before


@pytest.mark.parametrize("option", [("--run", "runs/plan"), ("--resume",), ("--require-resolved",)])
def test_a_plan_of_a_run_that_is_there_is_refused(option: tuple[str, ...], terminal: Terminal) -> None:
    code, _, err = terminal.run(*COMPARE, "--plan", *option)
    assert code == 2
    assert err.splitlines()[-1].startswith("rankwise: plan: it is of a new run")


def kept(run: Path) -> dict[str, Any]:
    """Every number that a run leaves but times and memory."""
    document = json.loads((run / "experiments.json").read_text())
    for experiment in document["experiments"]:
        del experiment["training_time_seconds"], experiment["peak_memory_bytes"]
    return {key: document[key] for key in ("experiments", "baseline", "notes")} | {
        str(file.relative_to(run)): (
            file.read_bytes() if file.suffix == ".safetensors" else pd.read_parquet(file).fillna(-1.0).to_dict("list")
        )
        for file in sorted(run.rglob("*"))
        if file.suffix in (".safetensors", ".parquet")
    }


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RANKWISE, *arguments],
        cwd=place,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkpoints(run: Path) -> set[tuple[str, int]]:
    try:
        return {(file.name, file.stat().st_mtime_ns) for file in run.glob("checkpoints/pack*")}
    except FileNotFoundError:  # removed while we looked, its pack is trained
        return set()


def test_killed_at_two_instants_a_run_ends_with_the_same_numbers(place: Path, terminal: Terminal) -> None:
    """Processes of their own are killed; what they leave goes on here, where the undisturbed run is made."""
    options = (*COMPARE, "--steps", "20", "--evaluations", "10", "--pack-size", "2")
    terminal.succeed(*options, "--run", "runs/undisturbed")
    chance = random.Random(20)
    run = place / "runs/killed"
    for kill in range(2):
        process = start(place, *options, "--run", "runs/killed", *(("--resume",) if kill else ()))
        # Counted in checkpoints, 30 at least, so that a slow machine is killed as often as a fast one.
        wanted, seen, last = chance.randint(1, 8), 0, None
        while seen < wanted and process.poll() is None:
            now = checkpoints(run)
            seen, last = seen + (bool(now) and now != last), now
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    terminal.succeed(*options, "--run", "runs/killed", "--resume")
    assert kept(run) == kept(place / "runs/undisturbed")
    assert list((run / "checkpoints").iterdir()) == []


def test_an_interrupt_leaves_a_run_that_goes_on(place: Path) -> None:
    options = (*COMPARE, "--steps", "2000", "--run", "runs/interrupted")
    # Tests that run in the background ignore interrupts, and what they start would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(place, *options)
    signal.signal(signal.SIGINT, before)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training"):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    last = errors.splitlines()[-1]
    assert last == "rankwise: interrupted; go on with: rankwise compare --run runs/interrupted --resume"
    assert "Traceback" not in errors


def test_a_run_goes_on_with_the_options_it_was_begun_with(place: Path, terminal: Terminal) -> None:
    terminal.succeed(*COMPARE, "--steps", "3", "--keep", "0.9", "--run", "runs/options")
    before = kept(place / "runs/options")
    terminal.succeed("compare", "--run", "runs/options", "--resume")
    assert kept(place / "runs/options") == before
    document = json.loads(
        terminal.succeed("compare", "--run", "runs/options", "--resume", "--seeds", "3", "--margin", "0.1", "--json")
    )
    assert [row["seeds"] for row in document["experiments"]] == [3, 3]
    assert document["recommendation"]["margin"] == 0.1
    _, _, errors = terminal.run("compare", "--run", "runs/options", "--resume", "--steps", "4")
    assert "runs/options belongs to another comparison: steps is 3 there and 4 here" in errors
    code, _, errors = terminal.run("compare", "--resume")
    assert (code, errors) == (2, "rankwise: --resume goes on with a run: say which with --run\n")
    assert terminal.run("compare", "--run", "runs/none", "--resume")[2] == (
        "rankwise: runs/none is not a run directory, so there is nothing to resume; leave out --resume\n"
    )


def test_a_run_goes_on_from_another_directory(
    place: Path, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.succeed(*COMPARE, "--steps", "3", "--run", "runs/elsewhere")
    before = kept(place / "runs/elsewhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("of somebody else")
    terminal.succeed("compare", "--run", str(place / "runs/elsewhere"), "--resume")
    assert kept(place / "runs/elsewhere") == before


def test_a_run_that_is_there_is_told_before_what_its_options_lack(place: Path, terminal: Terminal) -> None:
    terminal.succeed(*COMPARE, "--steps", "3", "--run", "runs/there")
    code, _, errors = terminal.run("compare", "--run", "runs/there")
    assert code == 2
    assert errors == ("rankwise: run directory runs/there exists: continue it with --resume, or choose another --run\n")


def test_a_removed_adapter_is_made_anew(place: Path, terminal: Terminal) -> None:
    terminal.succeed(*COMPARE, "--steps", "3", "--run", "runs/removed")
    shutil.rmtree(place / "runs/removed/adapter")
    code, _, errors = terminal.run("inspect", "runs/removed")
    assert (code, errors) == (
        2,
        "rankwise: runs/removed is a run whose adapter/ was removed: "
        "rankwise compare --run runs/removed --resume makes it anew\n",
    )
    terminal.succeed("compare", "--run", "runs/removed", "--resume")
    terminal.succeed("inspect", "runs/removed")


def test_an_interrupt_while_the_program_is_loaded_is_no_traceback() -> None:
    code = """
import sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "rankwise.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from rankwise.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("content", ["{", "[]", '{"config": []}', '{"config": {"no option": 1}}'])
def test_a_damaged_description_of_a_run_is_one_line(place: Path, terminal: Terminal, content: str) -> None:
    run = place / "runs/damaged"
    run.mkdir(parents=True, exist_ok=True)
    (run / "comparison.json").write_text(content)
    code, _, errors = terminal.run("compare", "--run", "runs/damaged", "--resume")
    assert (code, len(errors.splitlines())) == (1, 1)
    assert errors.startswith("rankwise: runs/damaged/comparison.json is damaged (")


def test_a_terminal_that_lacks_a_character_gets_the_answer(place: Path) -> None:
    done = subprocess.run(
        [*RANKWISE, *COMPARE, "--steps", "3", "--run", "runs/ascii"],
        cwd=place,
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-2]) == (0, "run      runs/ascii"), done.stderr


def bad_input(place: Path, name: str) -> tuple[str, ...]:
    """Write a broken input; the options that use it."""
    frame = sentences(60)
    path = place / f"{name}.csv"
    if name == "empty":
        path.write_text("")
    elif name == "one class":
        frame.assign(label="yes").to_csv(path, index=False)
    elif name == "unseen label":
        frame.assign(label=["maybe", *frame["label"][1:]]).to_csv(path, index=False)
        return ("--test", str(path))
    elif name == "one group":
        frame.assign(document="all").to_csv(path, index=False)
        return ("--train", str(path), "--group", "document")
    elif name == "no text":
        frame.assign(sentence=["", *frame["sentence"][1:]]).to_csv(path, index=False)
    elif name == "missing text":
        path = path.with_suffix(".parquet")
        frame.assign(sentence=[None, *frame["sentence"][1:]]).to_parquet(path)
    elif name == "no weights":
        save_model(place / name, "bert")
        (place / name / "model.safetensors").unlink()
        return ("--model", str(place / name))
    return ("--train", str(path))


BAD = {
    "missing file": (("--train", "absent.csv"), "absent.csv: no such file"),
    "values without commas": (("--ranks", "2", "4"), "4: cannot be read (No such file or directory); several values"),
    "keep and margin": (("--keep", "0.9", "--margin", "0.1"), "keep and margin are both given: leave one out"),
    "missing column": (("--text", "sentences"), "no column 'sentences'; its columns are 'sentence', 'label'"),
    "missing group": (("--group", "document"), "no column 'document'; its columns are 'sentence', 'label'"),
    "one group": ((), "fewer than 3 groups of label 'no', 'yes', too few to cut test and validation from"),
    "empty": ((), "empty.csv: the file is empty"),
    "one class": ((), "every label in column 'label' is 'yes'; at least two classes are needed"),
    "unseen label": ((), "column 'label' has labels that train.csv has not: 'maybe'"),
    "no text": ((), "column 'sentence' is empty in 1 of 60 rows, first on line 2"),
    "missing text": ((), "column 'sentence' has no value in 1 of 60 rows"),
    "rank 0": (("--ranks", "0,4"), "ranks: "),
    "negative rank": (("--ranks", "-4"), "ranks: '-4' is not a whole number of at least 1"),
    "large batch": (("--batch-size", "5000"), "batch-size: 5,000 is more than the "),
    "large rank": (("--ranks", "4,100"), "rank 100 is more than any adapted layer has"),
    "duplicate rank": (("--ranks", "4,8,4"), "ranks: rank 4 given more than once"),
    "budget of a grid": (("--budget", "30m"), "budget: only strategy escalate has one"),
    "no duration": (("--strategy", "escalate", "--budget", "soon"), "'soon' is not a duration such as 90s, 30m or 2h"),
    "three to start with": (("--strategy", "escalate", "--ranks", "2,4,8"), "starts with a rank and its double"),
    "no weights": ((), "has no weights (model.safetensors is needed)"),
    "unknown option": (("--rank", "4"), "No such option: --rank"),
    "unmatched target": (("--target-modules", "query,q_proj"), "target module 'q_proj' matches no linear layer"),
    "too long": (("--max-length", "65"), "max-length: 65 is more than the 64 positions"),
    "unknown tracker": (
        ("--report-to", "nonsense"),
        "report-to: 'nonsense' is not one of none, tensorboard,",
    ),
    "missing tracker": (("--report-to", "mlflow"), "mlflow not installed: pip install 'rankwise[trackers]'"),
    "rslora and scalings": (
        ("--rslora", "--scalings", "alpha/rank"),
        "rslora and scalings are both given: leave one out",
    ),
    "foreign run": (("--run", "runs/foreign", "--resume"), "runs/foreign is not a run directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, place: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, said = BAD[name]
    options = options or bad_input(place, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    code, out, err = terminal.run(*COMPARE, "--steps", "3", "--run", f"runs/{name}", *options)
    told = [line for line in err.splitlines() if line.startswith("rankwise: ")]
    assert code == 2
    assert len(told) == 1
    assert said in told[0]
    assert err.splitlines()[-1] == told[0]
    assert out == ""
    assert not (place / "runs" / name).exists()


def test_a_rank_above_some_layers_is_a_warning(place: Path, terminal: Terminal) -> None:
    save_model(place / "narrow", "llama")
    out = terminal.succeed(*COMPARE, "--model", "narrow", "--ranks", "2,20", "--steps", "2", "--run", "runs/narrow")
    assert "rank 20 is more than 4 of 14 adapted layers have" in " ".join(out.split())


def test_help_is_quick_to_import() -> None:
    code = "import sys, rankwise.cli.main; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
