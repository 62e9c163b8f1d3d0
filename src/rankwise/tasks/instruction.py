"""Instruction tuning on the user's own data: which examples there are, and what is learned of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rankwise.errors import UserError
from rankwise.tasks.conversation import BESIDE, SHAPES, BadExample, Rendered, is_empty, render, text_of
from rankwise.tasks.examples import Examples
from rankwise.tasks.files.table import Shape, Table, shape_of
from rankwise.tasks.groups import group_numbers, told_of_groups
from rankwise.tasks.learned import build_learned_task
from rankwise.tasks.source import NO_CAPS, Caps, Source, SplitName, read_tables, read_test_table
from rankwise.tasks.splits import Splits, capped, cut_missing, drop_leaked, notes_on_copies
from rankwise.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEWEST = 3  # train examples, so that test and validation can be cut from them


def load_instruction(
    *,
    train: Source,
    validation: Source | None,
    test: Source | None,
    group: str | None = None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    learn_prompts: bool = False,
    exact: bool = False,
    skip_bad: bool = False,
    keep_leaked: bool = False,
    caps: Caps = NO_CAPS,
    split_seed: int = 0,
) -> Task:
    """Read, render, split and tokenise conversations, or prompts and completions (`conversation.SHAPES`).

    Learned are completions, with `learn_prompts` whole texts, cut to `max_length` as `build_learned_task` says; `exact`
    is as in `Task`. Examples that cannot be used are errors, or with `skip_bad` left out. A split that is not given is
    cut from train. `group` is a column as in `load_classification`.

    Raises `UserError` (one line) for data that cannot be used as it is.
    """
    _check(tokenizer, max_length)
    damaged: list[str] | None = [] if skip_bad else None
    tables = read_tables(train, validation, test, _shapes(group), damaged)
    splits, notes = _rendered(tables, tokenizer, group, damaged)
    splits, cut_notes = cut_missing(splits, split_seed, how="at random", origin=tables["train"].origin)
    splits, leak_notes = drop_leaked(splits, keep=keep_leaked)
    splits = {split: capped(examples, caps.get(split), split_seed) for split, examples in splits.items()}
    task = build_learned_task(
        "instruction",
        splits,
        tokenizer=tokenizer,
        max_length=max_length,
        learn_prompts=learn_prompts,
        exact=exact,
        notes=[*notes, *cut_notes, *leak_notes, *notes_on_copies(splits["test"])],
    )
    return told_of_groups(task)


def load_instruction_test(
    test: Source,
    *,
    group: str | None = None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    learn_prompts: bool = False,
    exact: bool = False,
    skip_bad: bool = False,
) -> Task:
    """A task that is only tested, as `load_instruction` reads one."""
    _check(tokenizer, max_length)
    damaged: list[str] | None = [] if skip_bad else None
    splits, notes = _rendered({"test": read_test_table(test, _shapes(group), damaged)}, tokenizer, group, damaged)
    return build_learned_task(
        "instruction",
        splits,
        tokenizer=tokenizer,
        max_length=max_length,
        learn_prompts=learn_prompts,
        exact=exact,
        notes=[*notes, *notes_on_copies(splits["test"])],
    )


def _check(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    if max_length < 2:
        raise UserError(f"max-length {max_length}: the first token of an example is not learned; give at least 2")
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no pad token; set tokenizer.pad_token")


def _shapes(group: str | None) -> list[Shape]:
    return [replace(shape, beside=() if group is None else (group,)) for shape in SHAPES]


def _rendered(
    tables: Mapping[SplitName, Table],
    tokenizer: PreTrainedTokenizerBase,
    group: str | None,
    damaged: list[str] | None,
) -> tuple[Splits, list[str]]:
    """The examples, and notes on them. Those that cannot be used are errors, unless `damaged` is told of some."""
    bad = [*(damaged or [])]
    splits: Splits = {}
    skipped = 0
    unread: Counter[str] = Counter()
    for split, table in tables.items():
        splits[split], reasons, skipped_here, unread_here = rendered_examples(table, tokenizer, group)
        bad += reasons
        skipped += skipped_here
        unread += unread_here
    if bad and damaged is None:
        more = f" (and {len(bad) - 1:,} more such examples)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}; repair it, or leave such examples out with --skip-bad")
    for split, examples in splits.items():
        if len(examples) < (_FEWEST if split == "train" else 1):
            why = f"; the first of {len(bad):,} that cannot: {bad[0]}" if bad else ""
            raise UserError(f"{tables[split].origin}: {len(examples)} examples that can be used as {split}{why}")
    notes = [f"{len(bad):,} examples were left out: {bad[0]}{' …' if len(bad) > 1 else ''}"] if bad else []
    if skipped:
        notes.append(
            f"{skipped:,} turns of the assistant are read and not learned: the template writes them otherwise later on"
        )
    if unread:
        what = ", ".join(f"{column!r} of {count:,} examples" for column, count in unread.items())
        why = "; tools need messages, and a chat template with a place for them" if "tools" in unread else ""
        notes.append(f"not read, and no part of what is learned from: {what}{why}")
    return splits, notes


def rendered_examples(
    table: Table, tokenizer: PreTrainedTokenizerBase, group: str | None = None
) -> tuple[Examples, list[str], int, Counter[str]]:
    """The rows that can be used, for each other one where it is and why not, and what is left of those that are used.

    That is: how many turns are not learned, and for each column that is not read how many rows have something in it.
    """
    shape = shape_of(table.columns, SHAPES)
    assert shape is not None
    used: list[int] = []
    rendered: list[Rendered] = []
    groups: list[str] = []
    bad: list[str] = []
    unread: Counter[str] = Counter()
    for number, values in enumerate(zip(*table.columns.values(), strict=True)):
        row = dict(zip(table.columns, values, strict=True))
        try:
            one = render({column: row[column] for column in shape.columns}, tokenizer)
            if group is not None:
                groups.append(text_of(row[group], group))
            rendered.append(one)
            used.append(number)
            unread.update(column for column in BESIDE if column not in {*one.read, group} and not is_empty(row[column]))
        except BadExample as error:
            bad.append(f"{table.origin}, {table.place(number)}: {error}")
    rivals = [(number, rival) for number, one in zip(used, rendered, strict=True) for rival in one.rivals]
    examples = replace(
        _as_examples(used, rendered),
        groups=None if group is None else group_numbers(groups),
        rivals=_as_examples([number for number, _ in rivals], [rival for _, rival in rivals]) if rivals else None,
    )
    return examples, bad, sum(one.skipped for one in rendered), unread


def _as_examples(numbers: Sequence[int], rendered: Sequence[Rendered]) -> Examples:
    ids = np.array(numbers, dtype=np.int64)
    return Examples(
        ids=ids,
        texts=[one.text for one in rendered],
        pairs=None,
        labels=np.zeros_like(ids),
        spans=[one.spans for one in rendered],
    )
