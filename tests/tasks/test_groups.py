"""Groups by a column: kept whole, kept apart, counted; whatever the source, and wherever they cannot be."""

from __future__ import annotations

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
from transformers import PreTrainedTokenizerFast

from rankwise.errors import UserError
from rankwise.tasks.classification import load_classification, load_classification_test
from rankwise.tasks.groups import group_numbers
from rankwise.tasks.instruction import load_instruction, load_instruction_test
from rankwise.tasks.splits import stratified_split
from rankwise.tasks.task import Split, Task
from tests.tasks.conftest import make_tokenizer

Load = Callable[..., Task]
TOKENIZER = make_tokenizer(token_types=True)


def classify(train: Any, validation: Any = None, test: Any = None, **changed: Any) -> Task:
    usual = {"text": "text", "text_pair": None, "label": "label", "group": "doc", "max_length": 64}
    return load_classification(
        train=train, validation=validation, test=test, tokenizer=TOKENIZER, **{**usual, **changed}
    )


def instruct(train: Any, validation: Any = None, test: Any = None, **changed: Any) -> Task:
    usual = {"group": "doc", "tokenizer": TOKENIZER, "max_length": 64}
    return load_instruction(train=train, validation=validation, test=test, **{**usual, **changed})


def frame(docs: list[Any], prefix: str = "row", labels: list[Any] | None = None) -> pd.DataFrame:
    """Rows that a classification and an instruction task can be made of."""
    texts = [f"{prefix} {number}" for number in range(len(docs))]
    labels = [number % 2 for number in range(len(docs))] if labels is None else labels
    return pd.DataFrame(
        {"text": texts, "label": labels, "prompt": texts, "completion": texts, "doc": pd.Series(docs, dtype=object)}
    )


def parts(task: Task) -> dict[str, Split]:
    return {"train": task.train, "validation": task.validation, "test": task.test}


@pytest.mark.parametrize("load", [classify, instruct])
def test_copies_within_a_group_are_no_more_evidence_than_the_group(load: Load) -> None:
    def told(docs: list[int], group: str | None) -> list[str]:
        test = frame(docs, "test")
        test[["text", "prompt", "completion"]] = "same"
        others = frame([f"t{i}" for i in range(12)], "train"), frame([f"v{i}" for i in range(4)], "validation")
        fresh = pd.concat([frame([100 + i for i in range(20)], "fresh"), test], ignore_index=True)
        return [note for note in load(*others, fresh, group=group).notes if "copies of one another" in note]

    assert told([1] * 6, "doc") == []
    for docs, group in (([1] * 6, None), ([1, 1, 1, 2, 3, 4], "doc")):
        assert [note.partition(";")[0] for note in told(docs, group)] == [
            "6 of 26 test examples are copies of one another (different ones: 1)"
        ]


def docs_of(split: Split, source: pd.DataFrame) -> list[Any]:
    """The column's values of a split's examples, of which the split's groups are another name."""
    docs = [source["doc"][row] for row in split.example_ids]
    assert split.groups is not None
    assert len(set(zip(docs, split.groups.tolist(), strict=True))) == len(set(docs)) == len(set(split.groups.tolist()))
    return docs


def attempt(load: Load, *sources: Any, **changed: Any) -> Task | UserError:
    try:
        return load(*sources, **changed)
    except UserError as error:
        return error


def refusal(load: Load, *sources: Any, **changed: Any) -> str:
    with pytest.raises(UserError) as error:
        load(*sources, **changed)
    assert str(error.value).isprintable()
    return str(error.value)


each_task = pytest.mark.parametrize("load", [classify, instruct])
grouped_rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=6, max_size=80)


@each_task
@given(rows=grouped_rows, seed=st.integers(0, 50))
def test_what_is_cut_from_train_leaves_groups_whole(load: Load, rows: list[tuple[int, int]], seed: int) -> None:
    labels, docs = ([pair[place] for pair in rows] for place in (0, 1))
    assume(len(set(labels)) > 1)
    source = frame(docs, labels=labels)
    strata = labels if load is classify else [0] * len(labels)
    least = min(len({doc for doc, other in zip(docs, strata, strict=True) if other == label}) for label in set(strata))
    task = attempt(load, source, split_seed=seed)
    if isinstance(task, UserError):
        assert least < 4, task  # so many groups of each label are enough in any case
        return
    assert least >= (3 if load is classify else 4)
    found = {split: docs_of(part, source) for split, part in parts(task).items()}
    assert sorted(np.concatenate([part.example_ids for part in parts(task).values()])) == list(range(len(rows)))
    assert sum(len(set(of)) for of in found.values()) == len(set(docs))
    assert len(set(found["test"])) >= 2
    assert len(set(found["validation"])) >= 1
    assert set(task.train.labels.tolist()) == {sorted(set(strata)).index(label) for label in strata}
    again = load(source, split_seed=seed)
    assert [part.example_ids.tolist() for part in parts(again).values()] == [
        part.example_ids.tolist() for part in parts(task).values()
    ]
    assert sum("groups whole" in note for note in task.notes) == 2
    assert task.notes[-1] == (
        f"limits count the {len(set(found['test']))} groups that the {len(task.test)} test examples are of"
    )


# Of 9 and of 1 there would be no limits.
@given(st.lists(st.lists(st.integers(1, 8), min_size=3, max_size=7), min_size=2, max_size=4), st.integers(0, 50))
def test_three_groups_of_a_label_alone_put_it_into_every_split(sizes: list[list[int]], seed: int) -> None:
    rows = [
        (label, f"{label} {n}")
        for label, groups in enumerate(sizes)
        for n, size in enumerate(groups)
        for _ in range(size)
    ]
    labels, docs = map(list, zip(*rows, strict=True))
    task = classify(frame(docs, labels=labels), split_seed=seed)
    assert all(set(part.labels.tolist()) == set(range(len(sizes))) for part in parts(task).values())


@given(grouped_rows, st.floats(0.05, 0.5), st.integers(0, 50), st.integers(1, 3), st.integers(1, 3))
def test_as_many_groups_are_held_out_and_left_as_there_may_be(
    rows: list[tuple[int, int]], share: float, seed: int, fewest: int, left: int
) -> None:
    labels, groups = np.array(rows).T
    kept, held_out = stratified_split(labels, share, seed, groups, fewest=fewest, left=left)
    assert sorted([*kept, *held_out]) == list(range(len(rows)))
    assert not set(groups[kept]) & set(groups[held_out])

    def still_left(without: int | None = None) -> bool:
        """Whether every label is in enough groups that are kept, or in as many as there are."""
        stay = [row for row in kept if groups[row] != without]
        going = set(labels[held_out]) if without is None else set(labels[groups == without])
        return all(len(set(groups[stay][labels[stay] == label])) >= left for label in going)

    assert still_left()
    may_go = [group for group in set(groups[kept]) if still_left(group)]
    absent = set(labels) - set(labels[held_out])
    assert not any(absent & set(labels[groups == group]) for group in may_go)
    assert len(set(groups[held_out])) >= fewest or not may_go


@given(st.integers(0, 200))
def test_of_many_groups_about_a_share_of_each_label_is_held_out(seed: int) -> None:
    generator = np.random.default_rng(seed)
    docs = generator.integers(200, size=2000)
    labels = generator.integers(2, size=2000)
    _, held_out = stratified_split(labels, 0.2, seed, docs, fewest=2, left=2)
    for label in (0, 1):
        assert abs((labels[held_out] == label).sum() / (labels == label).sum() - 0.2) < 0.05


def test_seeds_hold_out_other_groups() -> None:
    source = frame([number // 5 for number in range(200)])
    assert len({tuple(classify(source, split_seed=seed).test.example_ids) for seed in range(5)}) == 5


SUFFIXES = ("csv", "tsv", "jsonl", "json", "parquet")


@each_task
@pytest.mark.parametrize("docs", [[f"d {n // 4}" for n in range(60)], [n // 4 for n in range(60)]], ids=["text", "int"])
def test_every_source_gives_the_same_groups(load: Load, docs: list[Any], tmp_path: Path) -> None:
    source = frame(docs).infer_objects()
    source.to_csv(tmp_path / "data.csv", index=False)
    source.to_csv(tmp_path / "data.tsv", index=False, sep="\t")
    source.to_json(tmp_path / "data.jsonl", orient="records", lines=True)
    source.to_json(tmp_path / "data.json", orient="records")
    source.to_parquet(tmp_path / "data.parquet")
    sources = [source, datasets.Dataset.from_pandas(source), *(tmp_path / f"data.{suffix}" for suffix in SUFFIXES)]
    if docs[0] == 0:
        sources.append(source.assign(doc=source["doc"].astype(float)))
    tasks = [load(each) for each in sources]
    for task in tasks:
        for split, first in zip(parts(task).values(), parts(tasks[0]).values(), strict=True):
            docs_of(split, source)
            assert split.example_ids.tolist() == first.example_ids.tolist()
            assert split.groups is not None
            assert first.groups is not None
            assert split.groups.tolist() == first.groups.tolist()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
def test_names_are_told_apart_but_for_space_around_them_and_the_spelling_of_integers(names: list[str]) -> None:
    numbers = group_numbers(names).tolist()
    plain = [name.strip().removesuffix(".0") if name.strip()[:1].isdigit() else name.strip() for name in names]
    assume(not any("." in name for name in names))
    assert [numbers.index(number) for number in numbers] == [plain.index(name) for name in plain]
    assert (
        group_numbers(["7", " 7.0 ", "07", "7.5", "-7"]).tolist()
        == group_numbers(["7"] * 2 + ["07", "7.5", "-7"]).tolist()
    )


@each_task
@given(
    docs=st.lists(st.lists(st.integers(0, 12), min_size=2, max_size=12), min_size=3, max_size=3),
    copied=st.integers(0, 11),
    keep=st.booleans(),
)
def test_examples_of_groups_that_come_before_are_removed_as_those_that_come_before(
    load: Load, docs: list[list[int]], copied: int, keep: bool
) -> None:
    sources = [frame(of, name) for of, name in zip(docs, ("train", "validation", "test"), strict=True)]
    train, _, test = sources
    assume(len(train) > 2)
    copy = copied % len(test)
    for column in ("text", "prompt", "completion"):
        test.loc[copy, column] = train[column][0]
    seen = set(docs[0]), set(docs[0]) | set(docs[1])
    left_validation = [row for row, doc in enumerate(docs[1]) if keep or doc not in seen[0]]
    left_test = [row for row, doc in enumerate(docs[2]) if keep or (doc not in seen[1] and row != copy)]
    task = attempt(load, *sources, keep_leaked=keep)
    if isinstance(task, UserError):
        tested = [docs[2][row] for row in left_test]
        assert not left_validation or max(map(tested.count, tested), default=0) >= 0.9 * len(tested), task
        return
    assert task.train.example_ids.tolist() == list(range(len(train)))
    assert task.validation.example_ids.tolist() == left_validation
    assert task.test.example_ids.tolist() == left_test
    assert len(set(docs_of(task.test, test))) >= 2
    of_groups = [note for note in task.notes if "are of groups that also occur" in note]
    counted = sum(doc in seen[1] and row != copy for row, doc in enumerate(docs[2]))
    then = "they were kept, and reward memory" if keep else "they were removed from test"
    said = f"{counted} of {len(test)} test examples are of groups that also occur in train or validation; {then}"
    assert (said in of_groups) == (counted > 0)
    assert f"1 of {len(test)} test examples also occur in train or validation; {then}" in task.notes


@each_task
def test_all_of_test_in_groups_of_train_is_refused(load: Load) -> None:
    train, test = frame(list("aabbccddee")), frame(list("abc"), "test")
    assert refusal(load, train, frame(["v"] * 4, "v"), test) == (
        "all 3 test examples, or their groups, also occur in train or validation; give other test data"
    )
    assert refusal(load, train, test, frame(list("xyz"), "v")).startswith("all 3 validation examples, or their groups,")


@each_task
def test_too_few_groups_are_one_line(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    for count in (1, 2, 3):
        frame([number % 10 % count for number in range(40)], labels=[number // 20 for number in range(40)]).to_csv(path)
        message = refusal(load, path)
        if load is classify and count < 3:
            assert message == (
                f"{path}: fewer than 3 groups of label '0', '1', too few to cut test and validation from; "
                "give test and validation data, or more groups"
            )
        else:
            assert message == (
                f"{path}: too few groups ({count}) to cut 2 for test and 1 for validation from; "
                "give test and validation data, or leave out --group"
            )
    frame([number % 10 % 4 for number in range(40)], labels=[number // 20 for number in range(40)]).to_csv(path)
    assert len(set(docs_of(load(path).test, pd.read_csv(path)))) == 2
    test = frame(["x", "y"] * 4, "t")
    frame([1] * 40).to_csv(path)
    assert str(path) in refusal(load, path, None, test)
    alone = frame(["x"] * 8, "t")
    assert refusal(load, path, frame(["v"] * 8, "v"), alone) == (
        "all 8 test examples are of one group, and limits count groups; "
        "give test examples of more groups, or leave out --group"
    )


@pytest.mark.parametrize("value", [None, "", "  ", ["a"]])
@pytest.mark.parametrize("suffix", ["frame", "jsonl", "json"])
def test_a_value_that_is_no_group_is_named_with_its_place(value: Any, suffix: str, tmp_path: Path) -> None:
    source: Any = frame([value if number == 7 else f"d{number // 2}" for number in range(40)])
    place = "row 7 (counted from 0)"
    if suffix != "frame":
        records = [json.dumps(row) for row in source.to_dict("records")]
        source = tmp_path / f"train.{suffix}"
        source.write_text("\n".join(records) if suffix == "jsonl" else "[" + ",\n".join(records) + "]")
        place = "line 8"
    origin = "train DataFrame" if suffix == "frame" else str(source)
    why = {None: "has no value", "['a']": "holds a list"}.get(value if value is None else str(value), "is empty")
    message = refusal(classify, source)
    assert message.startswith(f"{origin}: column 'doc' {why}")
    assert place in message
    why = "doc is not text" if isinstance(value, list) else "doc is empty"
    assert refusal(instruct, source) == (
        f"{origin}, {place}: {why}; repair it, or leave such examples out with --skip-bad"
    )
    task = instruct(source, skip_bad=True)
    assert task.notes[0] == f"1 examples were left out: {origin}, {place}: {why}"
    assert sorted(np.concatenate([part.example_ids for part in parts(task).values()])) == [
        row for row in range(40) if row != 7
    ]


@each_task
def test_a_column_that_is_not_there_is_named_with_those_that_are(load: Load, tmp_path: Path) -> None:
    frame(list("abcdefgh")).rename(columns={"doc": "docs"}).to_csv(tmp_path / "train.csv", index=False)
    message = refusal(load, tmp_path / "train.csv")
    assert message.startswith(f"{tmp_path}/train.csv: no column 'doc'; its columns are 'text', 'label'")
    assert message.endswith("did you mean 'docs'?")
    assert refusal(classify, frame(list("abcdefgh")), text="texts", group="texts").count("'texts'") == 1


def test_a_text_may_be_what_groups() -> None:
    source = frame([0] * 40).assign(context=[f"c {number // 4}" for number in range(40)])
    source["doc"] = source["context"]
    for task in (
        classify(source, group="context"),
        classify(source, text_pair="context", group="context"),
        instruct(source[["context", "completion"]].rename(columns={"context": "prompt"}), group="prompt"),
    ):
        assert sum(len(set(docs_of(part, source))) for part in parts(task).values()) == 10


@pytest.mark.parametrize("column", ["text", "choices", "input", "question"])
def test_a_column_that_groups_is_not_taken_for_what_else_it_could_mean(column: str) -> None:
    source = frame([number // 4 for number in range(40)])
    given = source[["prompt", "completion"]].assign(**{column: source["doc"]})
    assert instruct(given, group=column).train.fingerprint() == instruct(source).train.fingerprint()


@each_task
def test_a_larger_cap_adds_examples_with_their_groups(load: Load) -> None:
    source = frame([number // 4 for number in range(200)])
    tasks = [load(source, caps={"train": 20, "test": cap}) for cap in (10, 20, None)]
    assert [len(task.test) for task in tasks] == [10, 20, 40]
    for task in tasks:
        docs_of(task.test, source)
        docs_of(task.train, source)
    assert tasks[1].test.example_ids[:10].tolist() == tasks[0].test.example_ids.tolist()
    assert set(tasks[1].test.example_ids) <= set(tasks[2].test.example_ids)
    assert tasks[1].test.fingerprint(first=10) == tasks[0].test.fingerprint()


def test_a_task_that_is_only_tested_has_its_groups() -> None:
    source = frame([number // 4 for number in range(12)])
    columns: dict[str, Any] = {"text": "text", "text_pair": None, "label": "label", "labels": None}
    of_classes = load_classification_test(source, group="doc", tokenizer=TOKENIZER, max_length=64, **columns)
    of_texts = load_instruction_test(source, group="doc", tokenizer=TOKENIZER, max_length=64)
    for task in (of_classes, of_texts):
        assert docs_of(task.test, source) == source["doc"].tolist()


def test_wrong_choices_stay_with_their_example(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = {
        "question": [f"{number} is " for number in range(40)],
        "choices": [["odd", "even"]] * 40,
        "answer": [number % 2 for number in range(40)],
        "doc": [number // 4 for number in range(40)],
    }
    task = instruct(datasets.Dataset.from_dict(rows))
    for split in (task.validation, task.test):
        docs_of(split, pd.DataFrame(rows))
        assert split.rivals is not None
        assert split.rivals.example_ids.tolist() == split.example_ids.tolist()
        assert split.rivals.groups is None
