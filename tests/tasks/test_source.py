from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rankwise.errors import UserError
from rankwise.tasks.files import read_file
from rankwise.tasks.files.table import Shape
from rankwise.tasks.source import Rows, Source, SplitName, read_splits, read_test_rows

# What the usual loaders turn into missing values, numbers, booleans or dates, and what breaks parsers.
TRAPS = [
    *("NA", "N/A", "null", "None", "nan", "NaN", "true", "False", "12", "1e3", "007", "1_000", "-", "2020-01-01"),
    *("#hash", "  padded ", 'a "quoted" word', '"', "comma, tab\tin it", "two\nlines", "two\r\nlines", "naïve 🤖"),
    "a line separator \u2028 inside",
    "long " * 50_000,
]
ROWS = [{"text": text, "label": i % 2} for i, text in enumerate(TRAPS)]


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_csv(path, rows, delimiter="\t")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, rows: list[dict[str, Any]], indent: int | None = 2) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pd.DataFrame(rows).to_parquet(path)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "csv": write_csv,
    "tsv": write_tsv,
    "jsonl": write_jsonl,
    "ndjson": write_jsonl,
    "json-lines": write_jsonl,
    "json": write_json,
    "parquet": write_parquet,
}


def read_rows(source: Source, columns: list[str], *, split: SplitName) -> Rows:
    """One split's rows; beside a test split a train split is needed."""
    if split == "train":
        return read_splits(source, None, None, columns)["train"]
    return read_splits(pd.DataFrame({column: ["x"] for column in columns}), None, source, columns)[split]


@pytest.fixture(autouse=True)
def _own_cache_and_no_network(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def refusal(source: Any, columns: tuple[str, ...] = ("text", "label")) -> str:
    """The message of the error that reading raises; always one line."""
    with pytest.raises(UserError) as error:
        read_rows(source, columns, split="train")
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("suffix", WRITERS)
def test_text_in_a_file_is_taken_literally(suffix: str, tmp_path: Path) -> None:
    path = WRITERS[suffix](tmp_path / f"data.{suffix}", ROWS)
    rows = read_rows(path, ["text", "label"], split="train")
    assert rows.columns == {"text": TRAPS, "label": [str(i % 2) for i in range(len(TRAPS))]}
    assert read_rows(str(path), ["label", "text"], split="test").columns == rows.columns


def test_the_directory_that_one_is_in_is_a_data_set_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    monkeypatch.chdir(tmp_path)
    assert read_rows(".", ["text"], split="train").columns["text"] == TRAPS


def test_lines_that_end_in_carriage_returns_alone_are_told_so(tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_bytes(b"text,label\rgood,1\rbad,0\r")
    with pytest.raises(
        UserError, match=r"old.csv, line 1: not valid CSV: a carriage return alone; end lines with line"
    ):
        read_rows(file, ["text", "label"], split="train")


@pytest.mark.parametrize(
    "make", [pd.DataFrame, lambda rows: pd.DataFrame(rows).astype(object), datasets.Dataset.from_list]
)
def test_text_in_memory_is_taken_literally(make: Callable[[list[dict[str, Any]]], Any]) -> None:
    assert read_rows(make(ROWS), ["text"], split="train").columns == {"text": TRAPS}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_text_in_a_data_set_directory_is_taken_literally(suffix: str, tmp_path: Path) -> None:
    WRITERS[suffix](tmp_path / f"train.{suffix}", ROWS)
    read = read_rows(str(tmp_path), ["text", "label"], split="train")
    assert read.columns == {"text": TRAPS, "label": [str(row["label"]) for row in ROWS]}


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
@given(texts=st.lists(words, min_size=1, max_size=8))
def test_any_text_survives_a_file(suffix: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / f"data.{suffix}"
    WRITERS[suffix](path, [{"text": text, "label": "x"} for text in texts])
    assert read_rows(path, ["text"], split="train").columns["text"] == texts


def test_a_byte_order_mark_and_blank_lines_are_not_data(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "bom.csv", ROWS[:2], encoding="utf-8-sig")
    table.write_bytes(table.read_bytes() + b"\r\n\r\nlast,1\r\n")
    assert read_rows(table, ["text"], split="train").columns["text"] == [*TRAPS[:2], "last"]
    lines = tmp_path / "bom.jsonl"
    lines.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "b"}')
    assert read_rows(lines, ["text"], split="train").columns["text"] == ["a", "b"]
    array = tmp_path / "bom.json"
    array.write_bytes(b'\xef\xbb\xbf\n [\r\n{"text": "a"}\t,\n{"text": "b"}]\n')
    assert read_rows(array, ["text"], split="train").columns["text"] == ["a", "b"]


def test_numbers_of_objects_within_a_row_are_numbers(tmp_path: Path) -> None:
    """A chat template writes a tool's arguments; choices are texts."""
    call = {"name": "add", "arguments": {"a": 5, "b": [2.5, {"c": 1e3}], "d": "5"}}
    row = {"messages": [{"role": "assistant", "content": "12", "tool_calls": [call]}], "choices": [1, 2]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    for name in ("rows.jsonl", "rows.json"):
        columns = read_file(tmp_path / name, [Shape(("messages", "choices"))]).columns
        assert columns == {"messages": [row["messages"]], "choices": [["1", "2"]]}


def test_json_numbers_and_booleans_keep_their_spelling(tmp_path: Path) -> None:
    rows = ['{"text": 12}', '{"text": 1.50}', '{"text": true}', '{"text": 1e400}', '{"text": "true"}']
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    (tmp_path / "data.json").write_text(f"[{','.join(rows)}]")
    for path in tmp_path.iterdir():
        assert read_rows(path, ["text"], split="train").columns["text"] == ["12", "1.50", "true", "1e400", "true"]


@given(
    texts=st.lists(words, min_size=1, max_size=4),
    indent=st.sampled_from([None, 0, 3]),
    at=st.floats(0, 1),
    other=st.sampled_from([*'[]{},:" \n\0x1', ""]),
)
def test_an_array_is_read_where_pythons_own_parser_reads_it_and_nowhere_else(
    texts: list[str], indent: int | None, at: float, other: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_json(tmp_path_factory.mktemp("any") / "data.json", [{"text": text} for text in texts], indent)
    content = path.read_bytes().decode()
    place = int(at * len(content))
    content = content[:place] + other + content[place + 1 :]
    path.write_bytes(content.encode())
    try:
        objects = json.loads(content)
    except ValueError:
        objects = None
    if isinstance(objects, list) and objects and all(isinstance(one, dict) and one.get("text") for one in objects):
        assume(all(isinstance(one["text"], str) and one["text"].strip() for one in objects))
        read = read_rows(path, ["text"], split="train").columns["text"]
        assert read == [one["text"] for one in objects]
    else:
        assert refusal(path, ("text",)).startswith(str(path))


def test_an_array_is_not_read_where_it_is_larger_than_memory_should_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_json(tmp_path / "data.json", ROWS[:3])
    monkeypatch.setattr("rankwise.tasks.files.json_text.MOST_BYTES", path.stat().st_size)
    assert len(read_rows(path, ["text"], split="train").columns["text"]) == 3
    monkeypatch.setattr("rankwise.tasks.files.json_text.MOST_BYTES", path.stat().st_size - 1)
    assert refusal(path).startswith(f"{path}: takes more than ")


def test_numbers_and_booleans_in_memory_appear_as_json_writes_them() -> None:
    values = [12, 1.5, True, np.int8(3), np.float32(0.5), np.bool_(False), "x"]
    frame = pd.DataFrame({"text": pd.Series(values, dtype=object)})
    assert read_rows(frame, ["text"], split="train").columns["text"] == ["12", "1.5", "true", "3", "0.5", "false", "x"]


def test_a_data_frames_columns_may_be_numbers() -> None:
    assert read_rows(pd.DataFrame([["a", "b"]]), ["1"], split="train").columns == {"1": ["b"]}


def test_columns_that_were_not_asked_for_may_hold_anything(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": "a", "meta": None}, {"text": "b", "meta": [1]}])
    assert read_rows(path, ["text"], split="train").columns == {"text": ["a", "b"]}


CLASSES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})


def labelled(labels: list[int]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(len(labels))], "label": labels}, CLASSES)


def test_declared_classes_give_their_names(tmp_path: Path) -> None:
    data = labelled([1, 0, 1])
    parquet = tmp_path / "data.parquet"
    data.to_parquet(parquet)
    shuffled = data.select([2, 1, 0]).with_format("numpy")
    for source, expected in ((data, "pos neg pos"), (parquet, "pos neg pos"), (shuffled, "pos neg pos")):
        rows = read_rows(source, ["label"], split="train")
        assert rows.columns["label"] == expected.split()
        assert rows.class_names == {"label": ("neg", "pos")}
    assert read_rows(shuffled, ["text"], split="train").columns["text"] == ["t2", "t1", "t0"]
    assert "no value in 1 of 2 rows, first on row 1" in refusal(labelled([0, -1]))


def test_a_csv_directory_may_declare_classes_in_its_card(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [{"text": "NA", "label": 1}, {"text": "12", "label": 0}])
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
        "      class_label:\n        names:\n          '0': neg\n          '1': pos\n---\n"
    )
    rows = read_rows(str(tmp_path), ["text", "label"], split="train")
    assert rows.columns == {"text": ["NA", "12"], "label": ["pos", "neg"]}


def test_a_data_sets_own_splits_are_taken_where_only_train_is_given(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    for split in ("train", "validation", "test"):
        write_csv(directory / f"{split}.csv", [{"text": f"from {split}", "label": 1}])
    own = read_splits(str(directory), None, None, ["text"])
    assert {split: rows.columns["text"] for split, rows in own.items()} == {
        split: [f"from {split}"] for split in ("train", "validation", "test")
    }
    given_test = read_splits(directory, None, pd.DataFrame({"text": ["mine"]}), ["text"])
    assert {split: rows.columns["text"] for split, rows in given_test.items()} == {
        "train": ["from train"],
        "test": ["mine"],
    }
    named_twice = read_splits(str(directory), None, str(directory), ["text"])
    assert named_twice["test"].columns["text"] == ["from test"]


def test_what_datasets_saved_is_read_without_what_map_and_filter_keep_beside_it(tmp_path: Path) -> None:
    splits = {"train": labelled([0, 1, 1, 0]), "validation": labelled([1, 0]), "test": labelled([1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all")
    saved = datasets.load_from_disk(str(tmp_path / "all"))
    saved["train"].map(lambda row: {"text": f"changed {row['text']}"})
    saved["train"].filter(lambda row: row["label"] == 1)
    assert len(list((tmp_path / "all" / "train").glob("cache-*.arrow"))) == 2
    for directory in (str(tmp_path / "all"), tmp_path / "all"):
        read = read_splits(directory, None, None, ["text", "label"])
        assert {split: len(rows.columns["text"]) for split, rows in read.items()} == {
            "train": 4,
            "validation": 2,
            "test": 1,
        }
        assert read["train"].columns["label"] == ["neg", "pos", "pos", "neg"]
    alone = read_splits(tmp_path / "all" / "train", None, tmp_path / "all", ["text"])
    assert {split: len(rows.columns["text"]) for split, rows in alone.items()} == {"train": 4, "test": 1}


def test_a_saved_data_set_of_one_split_is_whichever_it_is_given_as(tmp_path: Path) -> None:
    labelled([0, 1, 1]).save_to_disk(tmp_path / "rows")
    for split in ("train", "test"):
        read = read_rows(tmp_path / "rows", ["text", "label"], split=split)
        assert read.columns == {"text": ["t0", "t1", "t2"], "label": ["neg", "pos", "pos"]}
    datasets.DatasetDict({"dev": labelled([0]), "rest": labelled([1])}).save_to_disk(tmp_path / "named")
    assert "no train split, only 'dev', 'rest'" in refusal(tmp_path / "named")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train/data-00000-of-00001.arrow", None),
        ("train/data-00000-of-00001.arrow", b"ARROW1"),
        ("train/state.json", None),
        ("train/state.json", b"{"),
        ("train/dataset_info.json", b"[]"),
        ("dataset_dict.json", b'{"splits": []}'),
        ("dataset_dict.json", b'{"splits": ["other"]}'),
    ],
)
def test_a_damaged_saved_data_set_is_one_line(file: str, content: bytes | None, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": labelled([0, 1])}).save_to_disk(tmp_path / "saved")
    damaged = tmp_path / "saved" / file
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    assert refusal(tmp_path / "saved").startswith(f"directory {tmp_path / 'saved'} could not be loaded: ")


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_saved_data_set_gives_no_traceback(
    at: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("flipped") / "saved"
    labelled([0, 1] * 20).save_to_disk(directory)
    (arrow,) = directory.glob("*.arrow")
    content = bytearray(arrow.read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    arrow.write_bytes(content)
    message = str(directory)
    try:
        read_splits(directory, None, None, ["text", "label"])
    except UserError as error:
        message = str(error)
    assert str(directory) in message
    assert message.isprintable()


def test_a_benchmarks_test_split_without_labels_is_left_out(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    for split, labels in {"train": [0, 1], "validation": [1, 0], "test": [-1, -1]}.items():
        labelled(labels).to_parquet(directory / f"{split}.parquet")
    assert set(read_splits(str(directory), None, None, ["text", "label"])) == {"train", "validation"}


def test_a_missing_split_is_named_with_those_there_are(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    for split in ("validation", "test"):
        write_csv(directory / f"{split}.csv", ROWS[:1])
    message = refusal(str(directory))
    assert str(directory) in message
    assert "no train split, only 'validation', 'test'" in message


def test_a_data_set_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    assert refusal("nobody/nothing").startswith("nobody/nothing: no such file or directory, and as a data set")
    directory = tmp_path / "broken"
    directory.mkdir()
    (directory / "train.csv").write_text('text,label\n"never closed,1\n')
    assert refusal(str(directory)).startswith(f"directory {directory} could not be loaded: ")


FILE_ERRORS: list[tuple[str, bytes, list[str]]] = [
    ("empty.csv", b"", ["the file is empty"]),
    ("header.csv", b"text,label\n", ["no rows"]),
    ("empty.jsonl", b"\n\n", ["no rows"]),
    ("names.csv", b"texts,lable\na,1\n", ["no column 'text', 'label'", "'texts', 'lable'", "did you mean 'texts'?"]),
    ("names.jsonl", b'{"body": "a", "label": 1}\n', ["no column 'text'", "'body', 'label'"]),
    ("twice.csv", b"text,label,text\na,1,b\n", ["'text' occurs more than once"]),
    ("semicolons.csv", b"text;label\na;1\n", ["its fields are separated by ';', and .csv has ',' between them"]),
    ("commas.tsv", b"text,label\na,1\n", ["its fields are separated by ',', and .tsv has"]),
    ("short.csv", b"text,label\na,1\nb\n", ["line 3: 1 fields where the header has 2"]),
    ("long.csv", b"text,label\na,1\nb, c,0\n", ["line 3: 3 fields where the header has 2"]),
    ("long.tsv", b"text\tlabel\na\t1\t\n", ["line 2: 3 fields"]),
    ("lines.csv", b'text,label\n"a\nb",1\nc\n', ["line 4: 1 fields"]),
    ("open.csv", b'text,label\na,1\n"b,0\nc,1\n', ["line 3:", "quote"]),
    ("quote.tsv", b'text\tlabel\n"a" b\t1\n', ["line 2:", "quote"]),
    ("blank.csv", b'text,label\na,1\n" ",0\n,1\n', ["column 'text' is empty in 2 of 3 rows, first on line 3"]),
    ("label.csv", b"text,label\na,1\nb,\n", ["column 'label' is empty in 1 of 2 rows, first on line 3"]),
    ("latin.csv", b"text,label\na,1\ncaf\xe9,0\n", ["line 3: not UTF-8 (byte 0xe9)"]),
    ("utf16.csv", "text,label\na,1\n".encode("utf-16"), ["line 1: not UTF-8"]),
    ("latin.jsonl", b'{"text": "a", "label": 1}\n{"text": "\xe9", "label": 1}\n', ["line 2: not UTF-8"]),
    ("bad.jsonl", b'{"text": "a", "label": 1}\n\n{"text": "b"\n', ["line 3: not JSON"]),
    ("deep.jsonl", b"[" * 100_000, ["line 1: not JSON"]),
    ("array.jsonl", b'["a", 1]\n', ["line 1: not a JSON object"]),
    ("empty.json", b" \n", ["the file is empty"]),
    ("rows.json", b"[ ]", ["no rows"]),
    ("lines.json", b'{"text": "a", "label": 1}\n{"text": "b"}\n', ["not an array of objects", "name it .jsonl"]),
    ("one.json", b'"text"', ["not an array of objects"]),
    ("names.json", b'[{"body": "a", "label": 1}]', ["no column 'text'", "'body', 'label'"]),
    ("number.json", b'[{"text": "a", "label": 1},\n\n 7]', ["line 3: not a JSON object; the file must hold an array"]),
    ("open.json", b'[{"text": "a", "label": 1},\n{"text": "b\n', ["line 2: not JSON ("]),
    ("cut.json", b'[{"text": "a",\n"label": 1}\n', ["line 2: not JSON", "neither goes on nor ends"]),
    ("more.json", b'[{"text": "a", "label": 1}]\n[]', ["line 1: not JSON", "neither goes on nor ends"]),
    ("comma.json", b'[{"text": "a", "label": 1},\n]', ["line 2: not JSON (Expecting value"]),
    ("deep.json", b"[" * 100_000, ["line 1: not JSON"]),
    ("latin.json", b'[{"text": "a", "label": 1},\n{"text": "\xe9"}]', ["line 2: not UTF-8"]),
    (
        "null.json",
        b'[{"text": "a", "label": 1},\n{"text":\n null, "label": 1}\n]',
        ["no value in 1 of 2 rows, first on line 2"],
    ),
    (
        "null.jsonl",
        b'{"text": "a", "label": 1}\n{"text": null, "label": 1}\n',
        ["no value in 1 of 2 rows, first on line 2"],
    ),
    ("nan.jsonl", b'{"text": NaN, "label": 1}\n', ["column 'text' has no value in 1 of 1 rows, first on line 1"]),
    (
        "key.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "b"}\n',
        ["'label' has no value in 1 of 2 rows, first on line 2"],
    ),
    ("list.jsonl", b'{"text": ["a"], "label": 1}\n', ["column 'text' holds a list on line 1"]),
    ("half.jsonl", b'{"text": "\\ud83d", "label": 1}\n', ["column 'text' is not valid Unicode on line 1"]),
    ("bad.parquet", b"PAR1 not really", ["not a readable Parquet file"]),
    ("empty.parquet", b"", ["not a readable Parquet file"]),
    ("data.xlsx", b"PK", ["cannot read .xlsx", ".csv", ".parquet"]),
    ("data", b"text,label\na,1\n", ["cannot read a file without suffix"]),
]


@pytest.mark.parametrize(("name", "content", "said"), FILE_ERRORS, ids=[name for name, _, _ in FILE_ERRORS])
def test_a_bad_file_is_refused_with_its_name_and_place(
    name: str, content: bytes, said: list[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(str(path))
    assert all(part in message for part in said), message


def test_parquet_is_refused_with_its_name_and_row(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pd.DataFrame({"text": ["a", None], "label": [1, 0]}).to_parquet(path)
    assert refusal(path).startswith(f"{path}: column 'text' has no value in 1 of 2 rows, first on row 1")
    pd.DataFrame({"text": [], "label": []}).to_parquet(path)
    assert refusal(path) == f"{path}: no rows"
    pd.DataFrame({"text": ["a"]}).to_parquet(path)
    assert refusal(path).startswith(f"{path}: no column 'label'")


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_a_data_frames_missing_value_is_not_text(missing: Any) -> None:
    frame = pd.DataFrame({"text": pd.Series(["nan", missing], dtype=object), "label": [0, 1]})
    assert refusal(frame).startswith("train DataFrame: column 'text' has no value in 1 of 2 rows, first on row 1")


def test_data_in_memory_is_refused_by_the_name_of_its_split() -> None:
    twice = pd.DataFrame([["a", "b", 1]], columns=["text", "text", "label"])
    assert refusal(twice).startswith("train DataFrame: column 'text' occurs more than once")
    assert refusal(pd.DataFrame({"text": [], "label": []})) == "train DataFrame: no rows"
    assert refusal(datasets.Dataset.from_dict({"text": ["a"]})).startswith("train Dataset: no column 'label'")
    assert refusal(["a", "b"]).startswith("train: cannot read a list")


@pytest.mark.parametrize("name", ["missing.csv", "./missing", "/no/such/place", "a/b/missing", Path("missing")])
def test_a_path_that_does_not_exist_is_a_missing_file(name: str | Path) -> None:
    assert refusal(name) == f"{Path(name)}: no such file"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tilde_is_the_home_directory(
    kind: Callable[[str], Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for split in ("train", "validation", "test"):
        write_csv(tmp_path / "data" / f"{split}.csv", [{"text": f"from {split}"}])
    expected = {split: [f"from {split}"] for split in ("train", "validation", "test")}
    one_by_one = read_splits(*(kind(f"~/data/{split}.csv") for split in expected), ["text"])
    for found in (one_by_one, read_splits(kind("~/data"), None, None, ["text"])):
        assert {split: rows.columns["text"] for split, rows in found.items()} == expected
    assert read_test_rows(kind("~/data/test.csv"), ["text"]).columns["text"] == ["from test"]
    assert refusal(kind("~/none.csv")) == f"{tmp_path}/none.csv: no such file"
    assert refusal(kind("~no-such-user/x.csv")) == "~no-such-user/x.csv: no such file"


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "data.csv", ROWS[:1])

    def denied(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(path) == f"{path}: cannot be read (Permission denied)"


def test_the_csv_modules_field_limit_is_left_as_it_was(tmp_path: Path) -> None:
    before = 131_072
    csv.field_size_limit(before)
    read_rows(write_csv(tmp_path / "good.csv", ROWS), ["text"], split="train")
    (tmp_path / "bad.csv").write_text("text,label\na\n")
    with pytest.raises(UserError) as refused:
        read_rows(tmp_path / "bad.csv", ["text"], split="train")
    assert csv.field_size_limit() == before, f"while {refused.value} holds what was running"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
@given(content=st.binary(max_size=60) | st.text(',"\n\r\t{}:ab', max_size=60).map(str.encode))
def test_no_content_whatever_gives_a_traceback(
    suffix: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"data.{suffix}"
    begin = {"parquet": b"", "jsonl": b'{"text": "a"}\n', "json": b'[{"text": "a"}'}.get(suffix, b"text\n")
    path.write_bytes(begin + content)
    message = str(path)
    try:
        assert all(text.strip() for text in read_rows(path, ["text"], split="train").columns["text"])
    except UserError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert message.isprintable()
