from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rankwise.errors import UserError
from rankwise.tasks.retained import cut_into_pieces, load_retained


def test_a_text_file_is_cut_into_pieces_of_which_all_but_the_first_token_is_scored(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = "To be, or not to be: that is the question." * 3
    (tmp_path / "hamlet.txt").write_text(text)
    split = load_retained(tmp_path / "hamlet.txt", tokenizer, 50)
    assert split.learned is not None
    assert split.input_ids.lengths.tolist() == [50, 50, len(text) - 100]
    assert "".join(tokenizer.decode(split.input_ids[row]) for row in range(3)) == text
    assert all(split.learned[row].tolist() == [0] + [1] * (len(split.learned[row]) - 1) for row in range(3))


def test_every_piece_begins_as_the_tokenizer_begins_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    class Beginning:
        """A tokenizer that puts its token for the beginning before a text."""

        bos_token, bos_token_id = "\x01", tokenizer("\x01", add_special_tokens=False)["input_ids"][0]

        def __call__(self, text: object, *, add_special_tokens: bool = True, **options: object) -> dict[str, object]:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens else ids}

    split = cut_into_pieces(["abcdef"], Beginning(), 4)  # type: ignore[arg-type]
    begin = Beginning.bos_token_id
    assert [split.input_ids[row].tolist()[0] for row in range(2)] == [begin, begin]
    assert tokenizer.decode(split.input_ids[1][1:]) == "def"


def test_examples_are_scored_where_they_would_be_learned(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": "two and two? ", "completion": "four"}, {"prompt": "sea? ", "completion": "blue"}]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = load_retained(tmp_path / "other.jsonl", tokenizer, 64)
    assert split.learned is not None
    assert [tokenizer.decode(split.input_ids[row][split.learned[row] == 1])[:4] for row in range(2)] == ["four", "blue"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("missing.txt", None, "missing.txt: cannot be read (No such file or directory)"),
        ("~no-such-user/a.txt", None, "~no-such-user/a.txt: cannot be read (No such file or directory)"),
        ("binary.txt", b"abc\xff", "binary.txt: not UTF-8 text (byte 3)"),
        ("empty.txt", b"", "empty.txt: too short, fewer than 2 tokens"),
        ("empty.jsonl", b"\n", "empty.jsonl: no rows"),
        ("empty.csv", b"prompt,completion\n", "empty.csv: no rows"),
        ("bad.jsonl", b'{"prompt": "a", "completion": ""}\n', "bad.jsonl, line 1: completion is empty; repair it"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    name: str, content: bytes | None, line: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_retained(name if name.startswith("~") else tmp_path / name, tokenizer, 64)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
