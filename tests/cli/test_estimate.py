"""`rankwise estimate` as a user runs it: its document, its tables, its errors and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, OlmoeConfig

from rankwise.base.catalogue import catalogue, entry_config
from rankwise.cli.main import main
from rankwise.memory.estimate import CUDA_CONTEXT_BYTES
from rankwise.report.text import bytes_text
from tests.models import save_model, tiny_config

PAGE = Path(__file__).parents[2] / "docs" / "estimates.md"
# The command of docs/estimates.md.
COURSE = (
    *("estimate", "llama-3.2-3b", "--ranks", "32,64", "--target-modules", "q_proj,v_proj"),
    *("--batch-size", "4", "--seq-len", "768", "--json"),
)
PARTS = {"base_weights", "adapter_weights", "gradients", "optimizer_states", "activations", "overhead"}
SHORT = ("--seq-len", "64")
QUICK = ("--method", "formula")
FORMULA = (*SHORT, *QUICK)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a space in its name and models in it."""
    place = tmp_path_factory.mktemp("a user's place")
    tiny_config("llama").save_pretrained(place / "llama")
    entry_config(catalogue()["all-minilm-l6-v2"]).save_pretrained(place / "minilm")
    OlmoeConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_experts=8,
        num_experts_per_tok=2,
        vocab_size=16,
        pad_token_id=0,
        eos_token_id=1,
    ).save_pretrained(place / "experts")
    save_model(place / "weights", "llama", AutoModelForCausalLM.from_config)
    (place / "hello.json").write_text("hello")
    (place / "no model.json").write_text('{"hidden_size": 32}')
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text("{}")
    (place / "empty").mkdir()
    return place


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command of docs/estimates.md prints, in a process of its own, without a network."""
    done = subprocess.run(
        [sys.executable, "-m", "rankwise", *COURSE],
        cwd=tmp_path_factory.mktemp("anywhere"),
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)
    return document


class Terminal:
    """Runs the program here, in the place and on a terminal of 80 columns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def run(self, *arguments: str) -> tuple[object, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["rankwise", "estimate", *arguments])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        printed = self.capfd.readouterr()
        return left.value.code, printed.out, printed.err

    def document(self, *arguments: str) -> dict[str, Any]:
        code, out, err = self.run(*arguments, "--json")
        assert (code, err) == (0, "")
        document: dict[str, Any] = json.loads(out)
        return document


@pytest.fixture
def terminal(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Terminal:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal(monkeypatch, capfd)


def costs(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [document["full_fine_tuning"], *document["ranks"], *document["methods"]]


def figures(document: dict[str, Any]) -> dict[str, Any]:
    """All of a document but the name and the time."""
    return {key: value for key, value in document.items() if key not in ("model", "seconds")}


def test_the_document_has_the_keys_that_are_promised(course: dict[str, Any]) -> None:
    promised = {"model", "total_params", "settings", "full_fine_tuning", "ranks", "largest_rank_that_fits", "seconds"}
    assert promised <= set(course)
    assert {"trainable_params", "peak_bytes"} <= set(course["full_fine_tuning"])
    assert [row["rank"] for row in course["ranks"]] == [32, 64]
    for row in course["ranks"]:
        assert {
            *("rank", "alpha", "trainable_params", "trainable_percent", "compression", "adapter_file_bytes", "memory"),
            *("peak_bytes", "peak_bytes_low", "peak_bytes_high", "rank_share_of_peak", "fits"),
        } <= set(row)
        assert set(row["memory"]) == PARTS


def test_the_page_names_every_key(course: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [key for key in {*course, *course["ranks"][0], *PARTS} if f"`{key}`" not in page] == []


def test_memory_adds_up_and_bytes_are_integers(course: dict[str, Any]) -> None:
    for cost in costs(course):
        assert sum(cost["memory"].values()) == cost["peak_bytes"]
        assert cost["peak_bytes_low"] < cost["peak_bytes"] < cost["reserved_bytes"] < cost["peak_bytes_high"]
        counted = [*cost["memory"].values(), *(value for key, value in cost.items() if key.endswith("_bytes"))]
        assert all(type(value) is int for value in counted)


def test_counts_and_ratios_are_those_of_the_model(course: dict[str, Any]) -> None:
    assert course["total_params"] == catalogue()["llama-3.2-3b"].params
    for row in course["ranks"]:
        # q_proj and v_proj of 28 layers; v_proj is narrow.
        assert row["trainable_params"] == row["rank"] * 28 * ((3072 + 3072) + (3072 + 1024))
        assert row["compression"] == course["total_params"] / row["trainable_params"]
        assert row["memory"]["adapter_weights"] == 4 * row["trainable_params"]
        assert row["memory"]["optimizer_states"] == pytest.approx(8 * row["trainable_params"], rel=1e-4)
        assert row["alpha"] == row["rank"]
        assert 0 < row["adapter_file_bytes"] - 4 * row["trainable_params"] < 20_000
    assert (course["largest_rank_that_fits"], course["gpu_bytes"], course["methods"]) == (None, None, [])
    assert {row["fits"] for row in course["ranks"]} == {None}


def test_the_pages_figures_are_those_that_its_command_prints(course: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert " ".join(["rankwise", *COURSE]) in page
    first, second = course["ranks"]
    full = course["full_fine_tuning"]
    for said in (
        f"{first['trainable_params']:,}: the sum over adapted layers",
        f"two moments: {bytes_text(first['memory']['optimizer_states'])}",
        f"| base weights | – | {bytes_text(first['memory']['base_weights'])}",
        f"| {bytes_text(first['memory']['activations'])}; one float32 copy of the logits",
        f"gradients | – | {bytes_text(first['memory']['overhead'])}",
        f"| {first['peak_bytes'] / 1e9:.1f} GB ({first['peak_bytes_low'] / 1e9:.1f}–"
        f"{first['peak_bytes_high'] / 1e9:.1f})",
        f"over trainable ones {first['compression']:.0f}×",
        f"over their adapters {first['matrix_compression']:.1f}×",
        f"{full['peak_bytes'] / 1e9:.1f} GB / {first['peak_bytes'] / 1e9:.1f} GB = "
        f"{full['peak_bytes'] / first['peak_bytes']:.2f}×",
        f"from {first['peak_bytes'] / 1e9:.2f} to {second['peak_bytes'] / 1e9:.2f} GB",
        f"{second['peak_bytes'] / first['peak_bytes'] - 1:.1%}; what the allocator reserves by "
        f"{second['reserved_bytes'] / first['reserved_bytes'] - 1:.1%}".replace("%", " %"),
    ):
        assert said in " ".join(page.split())


def test_a_model_is_the_same_by_whatever_it_is_named(terminal: Terminal) -> None:
    names = (
        *("all-minilm-l6-v2", "All-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        *("minilm", "minilm/config.json"),
    )
    first, *others = (terminal.document(name, "--ranks", "4", "--batch-size", "2", "--seq-len", "64") for name in names)
    assert first["settings"]["method"] == "simulate"
    assert all(figures(other) == figures(first) for other in others)


def test_the_formula_answers_in_the_same_form(terminal: Terminal) -> None:
    simulated, computed = (terminal.document("llama", "--ranks", "2,4", *options) for options in (SHORT, FORMULA))
    assert computed["settings"] == simulated["settings"] | {"method": "formula"}
    for cost, other in zip(costs(computed), costs(simulated), strict=True):
        assert sum(cost["memory"].values()) == cost["peak_bytes"]
        assert cost["peak_bytes_high"] - cost["peak_bytes_low"] > cost["peak_bytes"] // 2
        assert cost["trainable_params"] == other["trainable_params"]
        assert (cost["peak_at"], other["peak_at"] != "") == ("", True)
        assert cost.keys() == other.keys()


def test_what_fits_a_gpu_is_said_of_ranks_and_of_ways_to_train(terminal: Terminal) -> None:
    options = ("llama-3.2-3b", "--ranks", "8,64,1024", "--target-modules", "q_proj,v_proj", *QUICK)
    unlimited = terminal.document(*options)
    assert {cost["fits"] for cost in costs(unlimited)} == {None}
    room = unlimited["ranks"][1]["peak_bytes_high"] + CUDA_CONTEXT_BYTES
    limited = terminal.document(*options, "--gpu", f"{room}B")
    assert limited["gpu_bytes"] == room
    assert [row["fits"] for row in limited["ranks"]] == [True, True, False]
    assert limited["largest_rank_that_fits"] == 64
    _, just_fitting, too_large = (row["largest_batch"] for row in limited["ranks"])
    assert too_large < limited["settings"]["batch_size"] == just_fitting
    assert [way["method"] for way in limited["methods"]] == ["full", "lora", "qlora"]
    full, lora, qlora = limited["methods"]
    assert not full["fits"]
    assert (lora["fits"], lora["rank"], qlora["rank"]) == (True, 8, 8)
    assert qlora["memory"]["base_weights"] < lora["memory"]["base_weights"] / 2
    assert qlora["largest_batch"] > lora["largest_batch"]


def test_adapters_on_experts_cost_whole_weights(terminal: Terminal) -> None:
    """As docs/estimates.md says of OLMoE: PEFT keeps the experts' weights with their deltas added, at any rank."""
    options = ("experts", "--ranks", "2,4", *SHORT)
    attention = terminal.document(*options, "--target-modules", "q_proj,v_proj")
    everything = terminal.document(*options)
    experts = [group for group in everything["linear_layers"] if group["experts"] == 8]
    assert [(group["name"], group["d_in"], group["d_out"]) for group in experts] == [
        ("gate_up_proj", 64, 64),
        ("down_proj", 32, 64),
    ]
    whole = sum(2 * group["count"] * group["experts"] * group["d_in"] * group["d_out"] for group in experts)
    for few, many in zip(attention["ranks"], everything["ranks"], strict=True):
        assert many["memory"]["activations"] - few["memory"]["activations"] > whole


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("llama-3.2-3b",), 0),
        (("llama-3.2-3b", "--json"), 0),
        (("openai-community/gpt2", "--gpu", "24GiB", "--quantize", "nf4", "--layers"), 0),
        (("bert-base-uncased", "--target-modules", r".*\.(query|value)"), 0),
        (("bert-base-uncased", "--target-modules", "qurey"), 2),
        (("lama-3.2-3b",), 2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_the_formula_does_not_wait_for_torch(options: tuple[str, ...], code: int, tmp_path: Path) -> None:
    """Of the catalogue's models; importing torch and transformers takes seconds."""
    command = [sys.executable, "-X", "importtime", "-m", "rankwise", "estimate", *options, *QUICK]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == code
    assert (ran.stdout != "") == (code == 0)
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if "|" in line}
    assert "rankwise.memory.closed_form" in imported
    assert imported & {"torch", "transformers", "peft", "datasets", "pandas", "scipy"} == set()


def test_a_directory_is_meant_before_a_model_of_the_catalogue(terminal: Terminal) -> None:
    document = terminal.document("gpt2", "--ranks", "4", *FORMULA)
    Path("llama").rename("gpt2")
    try:
        assert document["total_params"] == catalogue()["gpt2"].params
        assert terminal.document("gpt2", "--ranks", "4", *FORMULA)["total_params"] < 100_000
    finally:
        Path("gpt2").rename("llama")


def test_the_tables_fit_the_terminal(terminal: Terminal) -> None:
    options = ("llama-3.2-3b", "--ranks", "8,64", "--gpu", "rtx4090", "--layers", *QUICK)
    code, out, err = terminal.run(*options)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    shown = [" ".join(line.split()) for line in out.splitlines()]
    document = terminal.document(*options)
    for row in document["ranks"]:
        said = f"{row['rank']} {row['trainable_params']:,} {row['trainable_percent']:.3g} "
        assert sum(line.startswith(said) for line in shown) == 1
    for name in ("full fine-tuning", "LoRA, rank 8", "QLoRA, rank 8", "down_proj 8,192 3,072 28 yes"):
        assert sum(line.startswith(name) for line in shown) == 1
    assert "on a GPU of 25.8 GB" in shown


BAD = {
    "large rank": (("llama", "--ranks", "4,64"), "rank 64 is more than any adapted layer has: the largest is 32"),
    "rank 0": (("llama", "--ranks", "0,4"), "ranks: '0' is not a whole number of at least 1"),
    "unmatched target": (
        ("llama", "--target-modules", "q_prj,v_proj"),
        "target module 'q_prj' matches no linear layer; the nearest names are q_proj",
    ),
    "unmatched pattern": (("llama", "--target-modules", ".*query"), "the regular expression '.*query' matches no"),
    "a broken pattern": (
        ("llama", "--target-modules", "(query"),
        "'(query' is no regular expression to match with: missing )",
    ),
    "a broken pattern for experts": (
        ("experts", "--target-modules", "(query"),
        "'(query' is no regular expression to match with",
    ),
    "unknown gpu": (("llama", "--gpu", "rtx4091"), "gpu 'rtx4091' is not known"),
    "gpu without a unit": (("llama", "--gpu", "24"), "write the unit, as in 24GiB"),
    "too long": (("llama", "--ranks", "4", "--seq-len", "65"), "seq-len 65: the model has positions for 64 tokens"),
    "unknown model": (("lama-3.2-3b",), "not in the catalogue: give one, a hub id (owner/name), or a name such as"),
    "missing file": (("./absent/config.json",), "absent/config.json is not a model directory"),
    "unknown dtype": (("llama", "--dtype", "int4"), "Invalid value for '--dtype': 'int4' is not one of 'float32',"),
    "no batch": (("llama", "--batch-size", "0"), "--batch-size"),
    "no JSON": (("hello.json",), "hello.json is not a model's config.json"),
    "no model": (("no model.json",), "no model.json is not a model's config.json"),
    "adapter": (("adapter",), "adapter is an adapter, not a base model: give the model that it adapts"),
    "empty directory": (("empty",), "empty is not a model directory: it has no config.json"),
    "unknown option": (("llama", "--rank", "4"), "No such option: --rank"),
    "no model named": ((), "Missing argument"),
    "pack size without packs": (("llama", "--pack-size", "4"), "give --engine pack"),
    "a formula for packs": (("llama", "--engine", "pack", "--method", "formula"), "the formula knows no packs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name: str, terminal: Terminal) -> None:
    arguments, said = BAD[name]
    code, out, err = terminal.run(*arguments)
    assert code == 2
    assert out == ""
    (told,) = err.splitlines()
    assert told.startswith("rankwise: ")
    assert said in told


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("lama-3.2-3b", "llama-3.2-3b"), ("Qwen3-8", "qwen3-8b"), ("nothing like it", "llama-3.2-3b")],
)
def test_a_misspelt_model_is_told_its_neighbours(typed: str, nearest: str, terminal: Terminal) -> None:
    code, _, err = terminal.run(typed)
    assert code == 2
    assert f"or a name such as {nearest}," in err


def test_a_rank_above_some_layers_is_a_note(terminal: Terminal) -> None:
    options = ("llama", "--ranks", "2,20", *FORMULA)
    _, out, _ = terminal.run(*options)
    (note,) = terminal.document(*options)["notes"]
    assert note.startswith("rank 20 is more than 4 of 14 adapted layers have")
    assert f"note: {note}" in " ".join(out.split())


def test_a_directory_is_estimated_by_its_configuration_alone(terminal: Terminal) -> None:
    with_weights = terminal.document("weights", "--ranks", "2", *FORMULA)
    assert figures(with_weights) == figures(terminal.document("llama", "--ranks", "2", *FORMULA))
