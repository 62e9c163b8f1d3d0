"""`rankwise compare --task instruction` as a user runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from rankwise.cli.main import main
from tests.models import CHAT_TEMPLATE, save_model, tiny_tokenizer

GOOD = [{"role": "user", "content": "say one"}, {"role": "assistant", "content": "one"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a space in its name, and two models in it: one that chats, one that does not."""
    place = tmp_path_factory.mktemp("a user's place")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    for name, template in (("chat", CHAT_TEMPLATE), ("plain", None)):
        save_model(place / name, "llama", AutoModelForCausalLM.from_config)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(place / name)
    save_model(place / "encoder", "bert")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(place / "encoder")
    write(place / "good.jsonl", conversations(30))
    return place


def conversations(count: int) -> list[Any]:
    return [{"messages": [{"role": "user", "content": f"say {number}"}, GOOD[1]]} for number in range(count)]


def write(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


BAD_LINES: dict[str, tuple[Any, str]] = {
    "no assistant": (
        {"messages": GOOD[:1]},
        "bad.jsonl, line 4: there is no turn of the assistant; repair it, or leave",
    ),
    "empty answer": (
        {"messages": [GOOD[0], {"role": "assistant", "content": ""}]},
        "bad.jsonl, line 4: a turn of the assistant is empty; repair it, or leave",
    ),
    "not JSON": ("{messages}", "bad.jsonl, line 4: not JSON ("),
    "no messages": ({"text": "a"}, "bad.jsonl, line 4: messages is not a list of messages"),
}

BAD_OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "no template": (("--model", "plain"), "the data are conversations, and the tokenizer has no chat template"),
    "encoder": (("--model", "encoder"), "a bert model is no causal language model: give one"),
    "longer than the context": (("--max-length", "65"), "max-length: 65 is more than the 64 positions"),
    "a column": (("--text", "question"), "text: task instruction finds its columns by their names"),
    "embedded": (("--model", "embedded"), "model: task instruction needs a causal language model"),
    "no data": (("--train", "absent.jsonl"), "absent.jsonl: no such file"),
    "of another task": (("--task", "classification", "--skip-bad"), "skip-bad: only task instruction has it"),
}


def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *options: str) -> tuple[object, str, str]:
    arguments = {"--model": "chat", "--task": "instruction", "--train": "good.jsonl", "--steps": "4", "--seeds": "2"}
    arguments |= {"--ranks": "1,2", "--learning-rates": "1e-2", "--max-length": "48", "--device": "cpu"}
    given = [word for pair in arguments.items() if pair[0] not in options for word in pair]
    monkeypatch.setattr(sys, "argv", ["rankwise", "compare", *given, *options])
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    printed = capfd.readouterr()
    return left.value.code, printed.out, printed.err


@pytest.mark.parametrize("name", [*BAD_LINES, *BAD_OPTIONS])
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if name in BAD_LINES:
        line, said = BAD_LINES[name]
        write(place / "bad.jsonl", [*[{"messages": GOOD}] * 3, line, *[{"messages": GOOD}] * 20])
        options: tuple[str, ...] = ("--train", "bad.jsonl")
    else:
        options, said = BAD_OPTIONS[name]
    code, out, errors = run(monkeypatch, capfd, *options)
    told = [text for text in errors.splitlines() if text.startswith("rankwise: ")]
    assert (code, out, len(told)) == (2, "", 1)
    assert said in told[0]
    assert not (place / "runs").exists()


def test_bad_lines_are_left_out_and_counted_where_that_is_allowed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    write(place / "mixed.jsonl", [*conversations(30), *(line for line, _ in BAD_LINES.values())])
    options = ("--train", "mixed.jsonl", "--skip-bad", "--run", "runs/mixed", "--json")
    code, out, _ = run(monkeypatch, capfd, *options)
    document = json.loads(out)
    assert code == 0
    assert document["task"] == "instruction"
    assert document["notes"][0].startswith("4 examples were left out: mixed.jsonl, line 33: not JSON")
