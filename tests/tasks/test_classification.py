from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rankwise.errors import UserError
from rankwise.tasks.classification import load_classification
from rankwise.tasks.task import Split, Task

ReadBack = Callable[[Split], list[tuple[str, ...]]]
SPLITS = ("train", "validation", "test")


@pytest.fixture
def load(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Task]:
    def load(train: Any, validation: Any = None, test: Any = None, **changed: Any) -> Task:
        usual = {"text": "text", "text_pair": None, "label": "label", "tokenizer": tokenizer, "max_length": 512}
        return load_classification(train=train, validation=validation, test=test, **(usual | changed))

    return load


def frame(texts: list[str], labels: list[Any], **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"text": texts, "label": pd.Series(labels, dtype=object), **columns})


def numbered(prefix: str, labels: list[Any]) -> pd.DataFrame:
    return frame([f"{prefix} {i}" for i in range(len(labels))], labels)


def refusal(load: Callable[..., Task], *sources: Any, **changed: Any) -> str:
    with pytest.raises(UserError) as error:
        load(*sources, **changed)
    assert str(error.value).isprintable()
    return str(error.value)


def test_given_splits_come_through_in_order(load: Callable[..., Task], read_back: ReadBack) -> None:
    sources = [numbered(split, ["no", "yes", "yes"]) for split in SPLITS]
    task = load(*sources, name="mine")
    assert (task.name, task.labels, task.pad_token_id, task.notes) == ("mine", ("no", "yes"), 0, ())
    for name, split, source in zip(SPLITS, (task.train, task.validation, task.test), sources, strict=True):
        assert read_back(split) == [(text,) for text in source["text"]], name
        assert split.labels.tolist() == [0, 1, 1]
        assert split.example_ids.tolist() == [0, 1, 2]
        assert split.groups is None


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["10", "9", "2", "9"], ("2", "9", "10"), [2, 1, 0, 1]),
        ([10, 9, 2, 9], ("2", "9", "10"), [2, 1, 0, 1]),
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        (["1.0", "0", "1"], ("0", "1"), [1, 0, 1]),
        (["1", "-1", "0"], ("-1", "0", "1"), [2, 0, 1]),
        (["1.0", "1.5", "2.0"], ("1.0", "1.5", "2.0"), [0, 1, 2]),
        (["b", "10", "9", "b"], ("10", "9", "b"), [2, 0, 1, 2]),
        ([True, False], ("false", "true"), [1, 0]),
        (["pos ", "neg", "pos"], ("neg", "pos"), [1, 0, 1]),
    ],
)
def test_the_order_of_labels(
    labels: list[Any], names: tuple[str, ...], numbers: list[int], load: Callable[..., Task]
) -> None:
    task = load(*(numbered(split, labels) for split in SPLITS))
    assert task.labels == names
    assert task.test.labels.tolist() == numbers


WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "csv": lambda data, path: data.to_csv(path, index=False),
    "tsv": lambda data, path: data.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda data, path: data.to_json(path, orient="records", lines=True),
    "json": lambda data, path: data.to_json(path, orient="records"),
    "parquet": lambda data, path: data.to_parquet(path),
}


def sources_of(data: pd.DataFrame, directory: Path) -> list[Any]:
    """The same rows in every kind of source that there is."""
    paths = [directory / f"data.{suffix}" for suffix in WRITERS]
    for (_, write), path in zip(WRITERS.items(), paths, strict=True):
        write(data, path)
    return [data, datasets.Dataset.from_pandas(data), *paths]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_numbers_with_fractions_are_no_classes(dtype: Any, load: Callable[..., Task], tmp_path: Path) -> None:
    data = numbered("row", [0.0, 1.25, 0.5, 3.0] * 6).astype({"label": dtype})
    (tmp_path / "directory").mkdir()
    data.to_csv(tmp_path / "directory" / "train.csv", index=False)
    for source in [*sources_of(data, tmp_path), tmp_path / "directory"]:
        said = "column 'label' holds numbers that are not whole, such as 0.5: regression is not supported"
        assert said in refusal(load, source)


@pytest.mark.parametrize(
    ("labels", "names"),
    [([0.0, 1.0], ("0", "1")), ([-1.0, 20.0], ("-1", "20")), (["v1.5", "v2.0"], ("v1.5", "v2.0"))],
)
def test_whole_numbers_and_texts_are_classes_in_every_source(
    labels: list[Any], names: tuple[str, ...], load: Callable[..., Task], tmp_path: Path
) -> None:
    for source in sources_of(numbered("row", labels * 9).infer_objects(), tmp_path):
        assert load(source).labels == names


def test_texts_that_look_like_fractions_are_classes_where_the_source_tells_them_so(
    load: Callable[..., Task], tmp_path: Path
) -> None:
    data = numbered("row", ["1.5", "2.0"] * 9)
    for source in sources_of(data, tmp_path):
        if str(source).endswith((".csv", ".tsv")):
            assert "holds numbers that are not whole, such as 1.5:" in refusal(load, source)
        else:
            assert load(source).labels == ("1.5", "2.0")


def test_labels_that_differ_in_case_alone_are_told(load: Callable[..., Task]) -> None:
    task = load(*(numbered(split, ["True", "no", "true"]) for split in SPLITS))
    assert task.labels == ("True", "no", "true")
    assert task.notes == ("labels 'True', 'true' differ in case alone, and are taken for different classes",)


def test_spellings_of_an_integer_may_differ_between_sources(load: Callable[..., Task], tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\nx,1\ny,0.0\n")
    (tmp_path / "validation.jsonl").write_text('{"text": "v", "label": 0}\n{"text": "w", "label": 1.0}\n')
    train = numbered("train", [1.0, 0.0])
    task = load(train, tmp_path / "validation.jsonl", tmp_path / "test.csv")
    assert task.labels == ("0", "1")
    assert task.validation.labels.tolist() == [0, 1]
    assert task.test.labels.tolist() == [1, 0]


def test_declared_classes_keep_their_order_and_leave_out_what_never_occurs(load: Callable[..., Task]) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["worse", "unused", "better"])}
    )
    sources = [
        datasets.Dataset.from_dict({"text": [f"{split} {i}" for i in range(3)], "label": [2, 0, 2]}, features)
        for split in SPLITS
    ]
    task = load(*sources)
    assert task.labels == ("worse", "better")
    assert task.train.labels.tolist() == [1, 0, 1]


@given(counts=st.lists(st.integers(3, 30), min_size=2, max_size=4), seed=st.integers(0, 100))
@settings(max_examples=25)
def test_missing_splits_are_cut_from_train(
    counts: list[int], seed: int, tokenizer: PreTrainedTokenizerFast, read_back: ReadBack
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    source = numbered("row", labels)
    usual: dict[str, Any] = {"text": "text", "text_pair": None, "label": "label", "tokenizer": tokenizer}
    task, again = (
        load_classification(train=source, validation=None, test=None, max_length=64, split_seed=seed, **usual)
        for _ in range(2)
    )
    parts = [task.train, task.validation, task.test]
    assert sorted(np.concatenate([part.example_ids for part in parts])) == list(range(len(labels)))
    for part, same in zip(parts, [again.train, again.validation, again.test], strict=True):
        assert set(part.labels) == set(range(len(counts)))
        assert read_back(part) == [(f"row {row}",) for row in part.example_ids]
        assert part.labels.tolist() == [labels[row] for row in part.example_ids]
        assert part.example_ids.tolist() == same.example_ids.tolist()
    for label, count in enumerate(counts):
        assert abs((task.test.labels == label).sum() - 0.2 * count) < 1
    assert len(task.notes) == 2


def test_a_given_split_is_left_alone_when_the_other_is_cut(load: Callable[..., Task]) -> None:
    train, test = numbered("train", [0, 1] * 20), numbered("test", [0, 1] * 3)
    task = load(train, None, test)
    assert task.test.example_ids.tolist() == list(range(6))
    assert sorted([*task.train.example_ids, *task.validation.example_ids]) == list(range(40))
    other_seed = load(train, None, test, split_seed=1)
    assert other_seed.validation.example_ids.tolist() != task.validation.example_ids.tolist()


ALIKE = [("Good film", "good  FILM\n"), ("straße", "STRASSE"), ("\ufb01ne \uff11\uff12", "fine 12")]


@pytest.mark.parametrize(("seen", "copy"), ALIKE)
def test_test_texts_seen_before_are_removed(
    seen: str, copy: str, load: Callable[..., Task], read_back: ReadBack
) -> None:
    train = frame([seen, "b", "c"], [0, 1, 0])
    validation = frame(["in validation", "w", copy], [0, 1, 1])
    test = frame(["new", copy, "IN validation ", "other"], [0, 1, 0, 1])
    task = load(train, validation, test)
    assert read_back(task.validation) == [("in validation",), ("w",)]
    assert read_back(task.test) == [("new",), ("other",)]
    assert task.test.example_ids.tolist() == [0, 3]
    assert len(task.train) == 3
    assert task.notes == (
        "1 of 3 validation examples also occur in train; they were removed from validation",
        "2 of 4 test examples also occur in train or validation; they were removed from test",
    )


def test_leaked_texts_are_kept_when_asked_for_and_still_counted(load: Callable[..., Task]) -> None:
    train, validation = frame(["a", "b"], [0, 1]), frame(["v", "w"], [0, 1])
    task = load(train, validation, frame(["A", "new"], [0, 1]), keep_leaked=True)
    assert task.test.example_ids.tolist() == [0, 1]
    assert [note.split(";")[0] for note in task.notes] == ["1 of 2 test examples also occur in train or validation"]


def test_a_pair_has_leaked_only_if_both_texts_have(load: Callable[..., Task], read_back: ReadBack) -> None:
    train = frame(["a", "b"], [0, 1], other=["x", "y"])
    validation = frame(["v", "w"], [0, 1], other=["x", "y"])
    test = frame(["a", "A", "x", "a x"], [0, 1, 0, 1], other=["y", " X", "a", "q"])
    task = load(train, validation, test, text_pair="other")
    assert read_back(task.test) == [("a", "y"), ("x", "a"), ("a x", "q")]


COPIES = "test examples are copies of one another"


@given(counts=st.lists(st.integers(1, 12), min_size=2, max_size=60), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_copies_within_test_are_told_where_they_make_limits_too_narrow(
    counts: list[int], seed: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A text's examples score alike, so that the mean varies as its texts' sums do."""
    texts = [("text ", "TEXT  ")[copy % 2] + str(text) for text, times in enumerate(counts) for copy in range(times)]
    test = frame(texts, [0, 1] * (len(texts) // 2) + [0] * (len(texts) % 2))
    sources = {"train": numbered("train", [0, 1]), "validation": numbered("validation", [0, 1]), "test": test}
    usual: dict[str, Any] = {"text": "text", "text_pair": None, "label": "label", "tokenizer": tokenizer}
    task = load_classification(**sources, **usual, max_length=64)
    scores = np.random.default_rng(seed).normal(size=(20_000, len(counts)))
    factor = (scores @ counts / len(texts)).std() / (1 / len(texts) ** 0.5)
    told = [note for note in task.notes if COPIES in note]
    if not 1.03 < factor < 1.07:
        assert bool(told) == (factor > 1.05)
    repeated = [times for times in counts if times > 1]
    said = f"{sum(repeated)} of {len(texts)} {COPIES} (different ones: {len(repeated)}); "
    assert all(note.startswith(said) for note in told)
    assert len(task.test) == len(texts)


def test_copies_are_counted_among_the_examples_that_are_used(load: Callable[..., Task]) -> None:
    train, validation = numbered("train", [0, 1] * 3), numbered("validation", [0, 1])
    test = frame(["same"] * 100 + [f"other {i}" for i in range(100)], [0, 1] * 100)
    capped = load(train, validation, test, caps={"test": 20})
    assert capped.notes[-1].startswith(f"{(capped.test.example_ids < 100).sum()} of 20 {COPIES}")
    assert load(train, validation, test).notes[-1].startswith(f"100 of 200 {COPIES}")


def test_repeats_within_one_split_are_no_leak(load: Callable[..., Task]) -> None:
    sources = [frame([f"{split}", f"{split}", "x" + split], [0, 1, 1]) for split in SPLITS]
    assert [len(part) for part in (load(*sources).train, load(*sources).test)] == [3, 3]


@given(
    data=st.lists(
        st.lists(st.text("aAbB \t\uff111", min_size=1).filter(str.strip), min_size=2, max_size=12),
        min_size=3,
        max_size=3,
    )
)
@settings(max_examples=50)
def test_no_text_is_on_two_sides(
    data: list[list[str]], tokenizer: PreTrainedTokenizerFast, read_back: ReadBack
) -> None:
    sources = [frame(texts, [i % 2 for i in range(len(texts))]) for texts in data]

    def plain(text: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", text).lower().split())

    alike = [{plain(text) for text in texts} for texts in data]
    train, validation, test = sources
    columns: dict[str, Any] = {"text": "text", "text_pair": None, "label": "label"}
    try:
        task = load_classification(
            train=train, validation=validation, test=test, tokenizer=tokenizer, max_length=512, **columns
        )
    except UserError:
        assert alike[1] <= alike[0] or alike[2] <= alike[0] | alike[1]
        return
    assert [text for (text,) in read_back(task.train)] == data[0]
    assert [text for (text,) in read_back(task.validation)] == [t for t in data[1] if plain(t) not in alike[0]]
    assert [text for (text,) in read_back(task.test)] == [t for t in data[2] if plain(t) not in alike[0] | alike[1]]


def test_every_row_is_what_the_tokenizer_gives_for_it_alone(
    load: Callable[..., Task], tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = ["short", "x" * 40, "exactly sixteen!", "y" * 17, "two words"]
    pairs = ["p" * 40, "short", "q", "r" * 17, "the other one"]
    sources = [frame([mark + text for text in texts], [0, 1, 0, 1, 1], pair=pairs) for mark in "123"]
    for max_length in (18, 19, 20, 37, 38):
        for pair in (None, "pair"):
            task = load(*sources, max_length=max_length, text_pair=pair)
            cut = 0
            for split, source in zip((task.train, task.validation, task.test), sources, strict=True):
                assert split.token_type_ids is not None
                for row in range(len(split)):
                    inputs = [source["text"][row], *([source["pair"][row]] if pair else [])]
                    alone = tokenizer(*inputs, truncation="longest_first", max_length=max_length)
                    assert split.input_ids[row].tolist() == alone["input_ids"]
                    assert split.token_type_ids[row].tolist() == alone["token_type_ids"]
                    cut += len(tokenizer(*inputs)["input_ids"]) > max_length
            said = f"{cut} of 15 examples are longer than {max_length} tokens and were cut"
            assert task.notes == ((said,) if cut else ())


def test_token_types_are_kept_only_where_the_tokenizer_gives_them(
    load: Callable[..., Task], plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    sources = [numbered(split, [0, 1]) for split in SPLITS]
    assert load(*sources).test.token_type_ids is not None
    assert load(*sources, tokenizer=plain_tokenizer).test.token_type_ids is None


def test_chunks_of_tokenising_do_not_show(
    load: Callable[..., Task], read_back: ReadBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [numbered(split * length, [0, 1] * 5) for length, split in enumerate(SPLITS, start=1)]
    whole = load(*sources, max_length=14)
    monkeypatch.setattr("rankwise.tasks.examples.CHUNK", 3)
    chunked = load(*sources, max_length=14)
    assert chunked.notes == whole.notes
    for part, same in zip((chunked.train, chunked.test), (whole.train, whole.test), strict=True):
        assert read_back(part) == read_back(same)
        assert part.fingerprint() == same.fingerprint()


TRAIN, VALIDATION = numbered("train", ["a", "b"] * 3), numbered("validation", ["a", "b"])


@pytest.mark.parametrize(
    ("sources", "changed", "said"),
    [
        ((numbered("t", ["a"] * 9),), {}, ["train DataFrame: every label in column 'label' is 'a'", "two classes"]),
        ((TRAIN, VALIDATION, numbered("t", ["a", "c", "d"])), {}, ["test DataFrame", "'c', 'd'", "'a', 'b'"]),
        ((TRAIN, numbered("v", ["B"]), VALIDATION), {}, ["validation DataFrame", "'B'"]),
        ((numbered("t", [0, 1, None]),), {}, ["train DataFrame: column 'label' has no value in 1 of 3 rows"]),
        ((numbered("t", ["a"] * 9 + ["b"] * 2),), {}, ["train DataFrame: fewer than 3 examples of label 'b'"]),
        ((numbered("t", ["a"] * 9 + ["b"]), VALIDATION), {}, ["fewer than 2 examples of label 'b'", "give test data"]),
        ((TRAIN, VALIDATION, TRAIN), {}, ["all 6 test examples also occur in train or validation"]),
        ((TRAIN, TRAIN, VALIDATION), {}, ["all 6 validation examples also occur in train"]),
        ((TRAIN,), {"text": "label"}, ["different columns", "'label', 'label'"]),
        ((TRAIN,), {"text_pair": "texts"}, ["no column 'texts'", "did you mean 'text'?"]),
        ((TRAIN,), {"max_length": 2}, ["max_length 2 leaves no room for text"]),
        ((Path("missing.csv"),), {}, ["missing.csv: no such file"]),
    ],
)
def test_bad_data_is_refused_in_one_line(
    sources: tuple[Any, ...], changed: dict[str, Any], said: list[str], load: Callable[..., Task]
) -> None:
    message = refusal(load, *sources, **changed)
    assert all(part in message for part in said), message


def test_a_file_is_named_where_its_labels_are_refused(load: Callable[..., Task], tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.jsonl"
    train.write_text("text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(20)))
    test.write_text(json.dumps({"text": "new", "label": "2"}))
    message = refusal(load, train, None, test)
    assert str(train) in message
    assert str(test) in message


def test_an_example_without_tokens_is_refused(load: Callable[..., Task]) -> None:
    # BPE without a token for what it does not know leaves it out.
    one_letter = Tokenizer(models.BPE(vocab={"[PAD]": 0, "k": 1}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=one_letter, pad_token="[PAD]")
    splits = [frame(["k" + split, split], [0, 1]) for split in ("A", "B", "C")]
    assert "3 of 6 examples have no token" in refusal(load, *splits, tokenizer=tokenizer)


def test_a_tokenizer_that_cannot_pad_is_refused(load: Callable[..., Task], tokenizer: PreTrainedTokenizerFast) -> None:
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert "no pad token" in refusal(load, numbered("t", [0, 1] * 9), tokenizer=without)
