"""A classification task from the user's own data.

What makes a comparison of ranks dishonest without a word is settled here: a label that one split
spells otherwise, a class that only the test split has, and test texts that were trained on, which
reward whatever rank memorises best.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rankwise.errors import UserError
from rankwise.tasks.examples import Examples, build_task
from rankwise.tasks.files.table import quoted
from rankwise.tasks.groups import group_numbers, told_of_groups
from rankwise.tasks.source import NO_CAPS, Caps, Rows, Source, is_integer, read_splits, read_test_rows, without_fraction
from rankwise.tasks.splits import Splits, capped, cut_missing, drop_leaked, missing_splits, notes_on_copies
from rankwise.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_classification(
    *,
    train: Source,
    validation: Source | None,
    test: Source | None,
    text: str,
    text_pair: str | None,
    label: str,
    group: str | None = None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    keep_leaked: bool = False,
    caps: Caps = NO_CAPS,
    split_seed: int = 0,
    name: str = "classification",
) -> Task:
    """Read, split and tokenise labelled texts, or pairs of texts.

    A split that is not given is cut from train: stratified by label, the same for the same seed. Test
    examples whose text (both texts of a pair) also occurs in train or validation are removed unless
    `keep_leaked`, and validation examples that occur in train likewise; case, white space and Unicode
    compatibility forms make no difference. Examples with one value in the column `group`, which may be
    that of a text, belong together: none such are cut apart, and where their group also occurs in an
    earlier split, they are removed as if their text did. Labels that are all integers are ordered by
    value (1.0 counts as 1), others alphabetically, unless the source declares an order. `max_length`
    counts tokens. `caps` take a random part of a split; a larger cap adds examples and changes none.

    Raises `UserError` (one line) for data that cannot be used as it is.
    """
    rows = read_splits(train, validation, test, _columns(text, text_pair, label, group))
    classes = _Classes.of(rows["train"], label)
    splits = {
        split: _examples(of, classes, text=text, text_pair=text_pair, label=label, group=group)
        for split, of in rows.items()
    }
    _check_counts(splits, classes)
    splits, cut_notes = cut_missing(splits, split_seed, how="stratified by label", origin=classes.origin)
    splits, leak_notes = drop_leaked(splits, keep=keep_leaked)
    splits = {split: capped(examples, caps.get(split), split_seed) for split, examples in splits.items()}
    missing = [name for index, name in enumerate(classes.names) if index not in splits["train"].labels]
    if missing:
        raise UserError(f"{caps['train']:,} train examples have none of label {quoted(missing)}; use more of them")
    task = build_task(
        name,
        classes.names,
        splits,
        tokenizer=tokenizer,
        max_length=max_length,
        notes=[*classes.notes, *cut_notes, *leak_notes, *notes_on_copies(splits["test"])],
    )
    return told_of_groups(task)


def load_classification_test(
    test: Source,
    *,
    text: str,
    text_pair: str | None,
    label: str,
    group: str | None = None,
    labels: tuple[str, ...] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Task:
    """A task that is only tested, as `load_classification` reads one.

    `labels` are the classes in order; None takes those that the data have, in the order that training would give them.
    """
    rows = read_test_rows(test, _columns(text, text_pair, label, group))
    classes = _Classes.of(rows, label) if labels is None else _Classes.known(labels)
    examples = _examples(rows, classes, text=text, text_pair=text_pair, label=label, group=group)
    return build_task(
        "classification",
        classes.names,
        {"test": examples},
        tokenizer=tokenizer,
        max_length=max_length,
        notes=notes_on_copies(examples),
    )


def _columns(text: str, text_pair: str | None, label: str, group: str | None) -> list[str]:
    columns = [column for column in (text, text_pair, label) if column is not None]
    if len(set(columns)) < len(columns):
        raise UserError(f"text, text pair and label must be different columns, not {quoted(columns)}")
    return columns if group is None or group in columns else [*columns, group]


@dataclass(frozen=True)
class _Classes:
    """The classes of the train split, in order; `integers` where 1.0 is another spelling of 1."""

    names: tuple[str, ...]
    integers: bool
    origin: str

    @classmethod
    def of(cls, train: Rows, label: str) -> _Classes:
        found = {value.strip() for value in train.columns[label]}
        if label in train.numeric:
            fractions = [value for value in found if not float(value).is_integer()]
            if fractions:
                raise UserError(
                    f"{train.origin}: column {label!r} holds numbers that are not whole, such as "
                    f"{min(fractions, key=float)}: regression is not supported; put them into classes, or where they "
                    "are classes already, give these names with letters"
                )
        integers = all(is_integer(value) for value in found)
        if label in train.class_names:
            names = [value for value in train.class_names[label] if value.strip() in found]
        elif integers:
            names = sorted({without_fraction(value) for value in found}, key=lambda value: (int(value), value))
        else:
            names = sorted(found)
        if len(names) < 2:
            raise UserError(
                f"{train.origin}: every label in column {label!r} is {quoted(names)}; at least two classes are needed"
            )
        return cls(tuple(names), integers, train.origin)

    @classmethod
    def known(cls, names: tuple[str, ...]) -> _Classes:
        return cls(names, all(is_integer(name) for name in names), "what the adapter was trained on")

    @property
    def notes(self) -> list[str]:
        """Which classes are perhaps one that is written in several ways."""
        counts = Counter(name.casefold() for name in self.names)
        alike = [name for name in self.names if counts[name.casefold()] > 1]
        return [f"labels {quoted(alike)} differ in case alone, and are taken for different classes"] if alike else []

    def indices(self, rows: Rows, label: str) -> np.ndarray:
        """Class numbers of the rows."""
        number = {name.strip(): index for index, name in enumerate(self.names)}
        values = [value.strip() for value in rows.columns[label]]
        if self.integers:
            values = [without_fraction(value) for value in values]
        unseen = sorted(set(values) - number.keys())
        if unseen:
            raise UserError(
                f"{rows.origin}: column {label!r} has labels that {self.origin} has not: {quoted(unseen)}; "
                f"labels there are {quoted(self.names)}"
            )
        return np.array([number[value] for value in values], dtype=np.int64)


def _examples(
    rows: Rows, classes: _Classes, *, text: str, text_pair: str | None, label: str, group: str | None
) -> Examples:
    labels = classes.indices(rows, label)
    return Examples(
        ids=np.arange(len(labels), dtype=np.int64),
        texts=rows.columns[text],
        pairs=None if text_pair is None else rows.columns[text_pair],
        labels=labels,
        groups=None if group is None else group_numbers(rows.columns[group]),
    )


def _check_counts(splits: Splits, classes: _Classes) -> None:
    """Raise `UserError` where a label has too few examples, or groups, for all the splits to have some."""
    missing, train = missing_splits(splits), splits["train"]
    labels = train.labels if train.groups is None else np.unique([train.labels, train.groups], axis=1)[0]
    counts = np.bincount(labels, minlength=len(classes.names))
    scarce = [name for name, count in zip(classes.names, counts, strict=True) if count <= len(missing)]
    if missing and scarce:
        what = "examples" if train.groups is None else "groups"
        raise UserError(
            f"{classes.origin}: fewer than {len(missing) + 1} {what} of label {quoted(scarce)}, too few to cut "
            f"{' and '.join(missing)} from; give {' and '.join(missing)} data, or more {what}"
        )
