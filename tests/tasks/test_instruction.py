"""From files of instructions to tokens: which are learned, what is cut, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rankwise.errors import UserError
from rankwise.tasks.instruction import load_instruction
from rankwise.tasks.learned import _kept
from rankwise.tasks.task import Split, Task, collate
from tests.models import CHAT_TEMPLATE, tiny_tokenizer

# Public data that lie beside a checkout, where they do.
DATA = Path(__file__).parents[3] / "shared" / "data"
STORIES, INSTRUCTION = DATA / "models" / "stories260k", DATA / "instruction"


def tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerBase:
    made = tiny_tokenizer()
    made.chat_template, made.eos_token = template, "[SEP]"
    return made


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"what is {number}", "completion": f"it is {number}"} for number in range(count)]


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in records))
    return path


def load(path: Path, **changed: Any) -> Task:
    given = {"train": path, "validation": None, "test": None, "tokenizer": tokenizer(), "max_length": 64}
    return load_instruction(**(given | changed))


def learned_texts(split: Split, made: PreTrainedTokenizerBase) -> list[str]:
    assert split.learned is not None
    return [
        "".join(made.convert_ids_to_tokens(split.input_ids[row][split.learned[row] == 1].tolist()))
        for row in range(len(split))
    ]


def test_the_completion_and_its_end_are_learned_and_nothing_else(tmp_path: Path) -> None:
    task = load(jsonl(tmp_path / "train.jsonl", rows(40)))
    seen: set[int] = set()
    for split in (task.train, task.validation, task.test):
        ids = split.example_ids.tolist()
        assert learned_texts(split, tokenizer()) == [f"it is {number}[SEP]" for number in ids]
        seen |= set(ids)
    assert seen == set(range(40))
    assert (len(task.test), len(task.validation)) == (8, 5)
    assert task.is_instruction
    assert (task.labels, task.outcomes) == ((), len(tokenizer()))
    assert task.notes[0] == "test: 8 of 40 train examples set aside (at random, seed 0)"


def test_prompts_are_learned_where_that_is_asked_for(tmp_path: Path) -> None:
    task = load(jsonl(tmp_path / "train.jsonl", rows(10)), learn_prompts=True)
    # The first token has none before it.
    assert learned_texts(task.test, tokenizer()) == [f"hat is {n}it is {n}[SEP]" for n in task.test.example_ids]


def test_a_batch_says_where_its_learned_tokens_are(tmp_path: Path) -> None:
    task = load(jsonl(tmp_path / "train.jsonl", rows(10)))
    batch = collate(task.train, np.array([0, 3]), task.pad_token_id)
    assert batch.learned is not None
    tokens = batch.input_ids[batch.learned.rows, batch.learned.columns].tolist()
    expected = [task.train.input_ids[row][task.train.learned[row] == 1].tolist() for row in (0, 3)]  # type: ignore[index]
    assert tokens == [token for row in expected for token in row]
    assert batch.outcomes_by_row.tolist() == [len(row) for row in expected]


@given(prompt=st.integers(0, 30), completion=st.integers(1, 30), max_length=st.integers(2, 20), begins=st.booleans())
def test_a_prompt_loses_its_beginning_before_a_completion_loses_its_end(
    prompt: int, completion: int, max_length: int, begins: bool
) -> None:
    ids = [7] * (prompt + completion)
    if begins:
        ids[0] = 1
    marks = [0] * prompt + [1] * completion
    kept = _kept(ids, marks, max_length, bos=1)
    assert kept == sorted(set(kept))
    assert len(kept) == min(max_length, len(ids))
    learned = sum(marks[position] for position in kept)
    assert learned >= min(completion, max_length - max_length // 2)
    if learned < completion:
        # Then no more of the prompt is kept than half.
        assert len(kept) - learned <= max_length // 2
        assert kept[-1] < len(ids) - 1
    if begins:
        assert kept[0] == 0


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    records = rows(20)
    records[3] = {"prompt": "long " * 20, "completion": "it is short"}
    records[4] = {"prompt": "short", "completion": "it is long " * 20}
    task = load(jsonl(tmp_path / "train.jsonl", records))
    lengths = np.concatenate([split.input_ids.lengths for split in (task.train, task.validation, task.test)])
    assert lengths.max() == 64
    assert "1 examples are longer than 64 tokens: their prompts lost the beginning" in task.notes
    cut = "1 completions are too long for 64 tokens and lost their end"
    assert cut in task.notes
    exact = load(tmp_path / "train.jsonl", exact=True)
    assert f"{cut}, so that they count as exact without it" in exact.notes
    learned = sum(
        int(split.learned.flat.sum()) for split in (task.train, task.validation, task.test) if split.learned is not None
    )
    assert f"20 examples have {lengths.sum():,} tokens, of which {learned:,} are learned" in task.notes


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{not json", r"not JSON \(.*\)"),
        ("[1]", "not a JSON object"),
        ({"prompt": "what", "completion": ""}, "completion is empty"),
        ({"prompt": "", "completion": "it"}, "prompt is empty"),
    ],
)
def test_bad_lines_are_named_or_left_out_and_counted(tmp_path: Path, record: Any, reason: str) -> None:
    path = jsonl(tmp_path / "train.jsonl", [*rows(5), record, *rows(20)[5:]])
    with pytest.raises(UserError, match=rf"^{path}, line 6: {reason}; (each line must|repair it, or leave).*$") as said:
        load(path)
    assert "\n" not in str(said.value)
    task = load(path, skip_bad=True)
    assert len(task.train) + len(task.validation) + len(task.test) == 20
    assert task.notes[0].startswith(f"1 examples were left out: {path}, line 6: ")


def test_an_array_may_hold_bad_examples_but_must_be_one(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([*rows(5), 7, {"prompt": ""}, *rows(20)[5:]], indent=0))
    with pytest.raises(UserError, match=r"line 22: not a JSON object; the file must hold an array of objects$"):
        load(path)
    task = load(path, skip_bad=True)
    assert len(task.train) + len(task.validation) + len(task.test) == 20
    assert task.notes[0].startswith(f"2 examples were left out: {path}, line 22: not a JSON object")
    path.write_text(path.read_text()[:-1])
    with pytest.raises(UserError, match=r"line \d+: not JSON \(after this the array neither goes on nor ends\)$"):
        load(path, skip_bad=True)


def test_alpaca_as_it_is_published_is_the_same_as_lines(tmp_path: Path) -> None:
    records = [{"instruction": f"add {n}", "input": "1" * (n % 2), "output": f"it is {n}"} for n in range(20)]
    (tmp_path / "train.json").write_text(json.dumps(records, indent=4))
    array, lines = (load(path) for path in (tmp_path / "train.json", jsonl(tmp_path / "train.jsonl", records)))
    assert array.train.fingerprint() == lines.train.fingerprint()
    assert array.notes == lines.notes


def test_several_bad_examples_are_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", [*rows(8), {"prompt": "a"}, {"completion": "b"}])
    with pytest.raises(UserError, match=r"line 9: completion is empty \(and 1 more such examples\); repair it"):
        load(path)
    with pytest.raises(UserError, match=r"0 examples that can be used as test; the first of 3 that cannot: .*line 9"):
        load(path, test=jsonl(tmp_path / "test.jsonl", [{"prompt": "a", "completion": " "}]), skip_bad=True)


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = jsonl(tmp_path / "train.jsonl", [{"messages": turns}] * 5)
    with pytest.raises(UserError, match="the data are conversations, and the tokenizer has no chat template"):
        load(path, tokenizer=tokenizer(None))


def test_a_file_of_another_shape_is_told_what_is_needed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(UserError, match="columns are 'question', 'answer'; needed are messages, or prompt and compl"):
        load(path)


def test_a_completion_is_the_tokens_that_it_is_in_the_whole_text(tmp_path: Path) -> None:
    """SentencePiece begins a text with a space; a completion has none in front of it."""
    made = tiny_tokenizer()
    made.eos_token = "[SEP]"
    made.backend_tokenizer.normalizer = normalizers.Prepend("_")
    records = [{"prompt": f"what is {n} ", "completion": f"it is {n}"} for n in range(10)]
    task = load(jsonl(tmp_path / "train.jsonl", records), tokenizer=made)
    for row, number in enumerate(task.train.example_ids):
        whole = made(f"what is {number} it is {number}", add_special_tokens=False)["input_ids"]
        assert task.train.input_ids[row].tolist() == [*whole, made.eos_token_id]


def test_a_prompt_that_is_learned_is_cut_as_any_other(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", [{"prompt": f"{n}" * 40, "completion": f"yes {n}"} for n in range(10)])
    plain, learned = (load(path, max_length=20, learn_prompts=learn) for learn in (False, True))
    assert plain.train.input_ids.flat.tolist() == learned.train.input_ids.flat.tolist()
    assert all(
        text.endswith(f"yes {n}[SEP]")
        for text, n in zip(learned_texts(learned.train, tokenizer()), learned.train.example_ids, strict=True)
    )


def test_examples_without_a_token_to_learn_are_counted(tmp_path: Path) -> None:
    made = tokenizer()
    made.eos_token = None
    records = [{"text": "a" if number < 4 else f"text {number}"} for number in range(20)]
    task = load(jsonl(tmp_path / "train.jsonl", records), tokenizer=made, keep_leaked=True)
    assert "4 examples have no token that can be learned and were left out" in task.notes
    assert sum(map(len, (task.train, task.validation, task.test))) == 16


def test_turns_that_are_not_learned_are_counted(tmp_path: Path) -> None:
    said = [("assistant", "hello"), ("user", "say"), ("assistant", "one")]
    records = [{"messages": [{"role": role, "content": f"{text} {n}"} for role, text in said]} for n in range(10)]
    task = load(jsonl(tmp_path / "train.jsonl", records))
    assert task.notes[0].startswith("10 turns of the assistant are read and not learned")


def test_columns_of_a_conversation_that_are_not_read_are_named(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a {n}"}],
            "tools": [{"name": "add"}] if n < 2 else [],
            "history": f"h {n}",
            "source": "x",
        }
        for n in range(20)
    ]
    path = jsonl(tmp_path / "train.jsonl", records)
    assert load(path).notes[0] == (
        "not read, and no part of what is learned from: 'tools' of 2 examples, 'history' of 20 examples"
        "; tools need messages, and a chat template with a place for them"
    )
    with_a_place = tokenizer("{{ tools or '' }}" + CHAT_TEMPLATE)
    assert load(path, tokenizer=with_a_place).notes[0].endswith("learned from: 'history' of 20 examples")
    assert not any("not read" in note for note in load(path, tokenizer=with_a_place, group="history").notes)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_tools_are_the_same_from_every_kind_of_file(suffix: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    tools = [{"name": "add", "parameters": {"a": {"minimum": 1}}}]
    frame = pd.DataFrame([{"messages": turns, "tools": tools}] * 10)
    path = tmp_path / f"train.{suffix}"
    if suffix == "csv":
        frame.map(json.dumps).to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=suffix == "jsonl")
    made = tokenizer("{% for tool in tools %}{{ tool.name + (tool.parameters.a.minimum + 4) | string }}{% endfor %}.")
    made.chat_template += CHAT_TEMPLATE
    task = load(path, tokenizer=made, keep_leaked=True)
    whole = "".join(made.convert_ids_to_tokens(task.train.input_ids[0].tolist()))
    assert whole.startswith("add5.user")


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(
    ("name", "examples", "third"),
    [
        ("alpaca_shape", 1100, "45 kilometers is 45000 meters.</s>"),
        ("prompt_completion_shape", 1319, None),
    ],
)
def test_real_files_are_counted_and_cut_as_by_hand(name: str, examples: int, third: str | None) -> None:
    made = AutoTokenizer.from_pretrained(STORIES)
    path = INSTRUCTION / f"{name}.jsonl"
    task = load(path, tokenizer=made, max_length=256, keep_leaked=True)
    splits = (task.train, task.validation, task.test)
    assert sum(map(len, splits)) == examples
    records = [json.loads(line) for line in path.read_text().splitlines()]
    long = cut = 0
    for split in splits:
        for row, example in enumerate(split.example_ids):
            completion = records[example].get("completion", records[example].get("output"))
            # Behind a line break no space is put in front.
            behind = made(f"\n{completion}", add_special_tokens=False)["input_ids"]
            own = [*behind[len(made("\n", add_special_tokens=False)["input_ids"]) :], made.eos_token_id]
            assert split.learned is not None
            kept = split.input_ids[row][split.learned[row] == 1].tolist()
            assert split.input_ids[row][0] == made.bos_token_id
            assert kept == own[: len(kept)]
            assert len(kept) == len(own) or len(split.input_ids[row]) == 256
            cut += len(kept) < len(own)
            if third is not None and example == 2:
                assert "".join(made.convert_ids_to_tokens(kept)).replace("▁", " ").strip() == third
            long += len(split.input_ids[row]) == 256
    assert f"{cut:,} completions are too long for 256 tokens and lost their end" in task.notes
    assert long > 0


@pytest.mark.skipif(not INSTRUCTION.is_dir(), reason="the shared data are not here")
def test_chat_and_alpaca_of_one_content_are_one_task() -> None:
    """The two files hold the same examples; by a template they are the same tokens."""
    made = AutoTokenizer.from_pretrained(STORIES)
    made.chat_template = CHAT_TEMPLATE
    alpaca, chat = (
        load(INSTRUCTION / f"{name}_shape.jsonl", tokenizer=made, max_length=512) for name in ("alpaca", "chat")
    )
    assert alpaca.train.fingerprint() == chat.train.fingerprint()
    assert alpaca.notes == chat.notes
