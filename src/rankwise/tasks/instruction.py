"""Instruction tuning on the user's own data: what is learned of each example, and that it stays in it.

A text is tokenised in pieces, cut where a learned part begins or ends: so the tokens before a completion are those
that a model is given when it is used, and no token lies across the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from rankwise.errors import UserError
from rankwise.tasks.conversation import SHAPES, BadExample, Rendered, render
from rankwise.tasks.examples import Examples
from rankwise.tasks.files import Table
from rankwise.tasks.source import Source, SplitName, read_tables
from rankwise.tasks.splits import capped, cut_missing, drop_leaked
from rankwise.tasks.task import Ragged, Split, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEWEST = 3  # train examples, so that test and validation can be cut from them


def load_instruction(
    *,
    train: Source,
    validation: Source | None,
    test: Source | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    learn_prompts: bool = False,
    exact: bool = False,
    skip_bad: bool = False,
    keep_leaked: bool = False,
    train_examples: int | None = None,
    validation_examples: int | None = None,
    test_examples: int | None = None,
    split_seed: int = 0,
    name: str = "instruction",
) -> Task:
    """Read, render, split and tokenise conversations, or prompts and completions (`conversation.SHAPES`).

    Learned are completions, with `learn_prompts` whole texts; `exact` is as in `Task`. An example that is longer than
    `max_length` tokens loses the beginning of its prompt, down to half of that length, and only then the end of its
    completion. Examples that cannot be used are errors, or with `skip_bad` left out. A split that is not given is cut
    from train.

    Raises `UserError` (one line) for data that cannot be used as it is.
    """
    if max_length < 2:
        raise UserError(f"max-length {max_length}: the first token of an example is not learned; give at least 2")
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no pad token; set tokenizer.pad_token")
    damaged: list[str] | None = [] if skip_bad else None
    tables = read_tables(train, validation, test, SHAPES, damaged)
    bad = damaged or []
    splits: dict[SplitName, Examples] = {}
    for split, table in tables.items():
        splits[split], reasons = _examples(table, tokenizer, learn_prompts=learn_prompts)
        bad += reasons
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1:,} more such examples)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{more}; repair it, or leave such examples out with --skip-bad")
    for split, examples in splits.items():
        fewest = _FEWEST if split == "train" else 1
        if len(examples) < fewest:
            raise UserError(f"{tables[split].origin}: {len(examples)} examples that can be used, too few for {split}")
    notes = [f"{len(bad):,} examples were left out: {bad[0]}{' …' if len(bad) > 1 else ''}"] if bad else []
    splits, cut_notes = cut_missing(splits, split_seed, how="at random")
    splits, leak_notes = drop_leaked(splits, keep=keep_leaked)
    caps = {"train": train_examples, "validation": validation_examples, "test": test_examples}
    tokenised = {
        split: _tokenise(tokenizer, capped(examples, caps[split], split_seed), max_length)
        for split, examples in splits.items()
    }
    parts = {split: part for split, (part, _) in tokenised.items()}
    notes += [
        *cut_notes,
        *leak_notes,
        *_lengths(parts, sum((cut for _, cut in tokenised.values()), _Cut()), max_length),
    ]
    return Task(
        name=name,
        labels=(),
        outcomes=len(tokenizer),
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        pad_token_id=tokenizer.pad_token_id,
        notes=tuple(notes),
        exact=exact,
    )


def _examples(table: Table, tokenizer: PreTrainedTokenizerBase, *, learn_prompts: bool) -> tuple[Examples, list[str]]:
    """The rows that can be used, and for each other one where it is and why not."""
    columns = list(table.columns)
    if columns == ["messages"] and tokenizer.chat_template is None:
        raise UserError(
            f"{table.origin} has messages, and the tokenizer has no chat template to write them with: "
            "give prompt and completion instead, or a model that is tuned for chat"
        )
    used: list[int] = []
    rendered: list[Rendered] = []
    bad: list[str] = []
    for number, values in enumerate(zip(*table.columns.values(), strict=True)):
        try:
            rendered.append(render(dict(zip(columns, values, strict=True)), tokenizer))
            used.append(number)
        except BadExample as error:
            bad.append(f"{table.origin}, {table.place(number)}: {error}")
    spans = [((0, len(one.text)),) if learn_prompts else one.spans for one in rendered]
    texts = [one.text for one in rendered]
    ids = np.array(used, dtype=np.int64)
    return Examples(ids=ids, texts=texts, pairs=None, labels=np.zeros_like(ids), spans=spans), bad


@dataclass(frozen=True)
class _Cut:
    """How many examples lost something."""

    prompts: int = 0
    completions: int = 0

    def __add__(self, other: _Cut) -> _Cut:
        return _Cut(self.prompts + other.prompts, self.completions + other.completions)


def _tokenise(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> tuple[Split, _Cut]:
    assert examples.spans is not None
    pieces, learned = _pieces(examples.texts, examples.spans)
    flat = [piece for of_one in pieces for piece in of_one]
    tokens = iter(tokenizer(flat, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])
    ids, marks, cut = [], [], _Cut()
    for of_one, flags in zip(pieces, learned, strict=True):
        encoded = [next(tokens) for _ in of_one]
        row_ids = [token for piece in encoded for token in piece]
        row_marks = [flag for piece, flag in zip(encoded, flags, strict=True) for _ in piece]
        kept = _kept(row_ids, row_marks, max_length, tokenizer.bos_token_id)
        ids.append([row_ids[position] for position in kept])
        # The first token has none before it that it could be learned from.
        marks.append([0, *(row_marks[position] for position in kept[1:])])
        cut += _Cut(prompts=int(len(kept) > 0 and kept != list(range(len(kept)))), completions=_cut_end(kept, row_ids))
    rows = np.array([index for index, row in enumerate(marks) if any(row)], dtype=np.int64)
    if not len(rows):
        raise UserError("no example has a token that is learned")
    split = Split(
        example_ids=examples.ids[rows],
        input_ids=Ragged.from_rows([ids[row] for row in rows]),
        token_type_ids=None,
        labels=examples.labels[rows],
        learned=Ragged.from_rows([marks[row] for row in rows]),
    )
    return split, cut


def _pieces(
    texts: Sequence[str], spans: Sequence[tuple[tuple[int, int], ...]]
) -> tuple[list[list[str]], list[list[int]]]:
    """Each text cut at the borders of its learned parts, and for each piece whether it is one."""
    pieces, learned = [], []
    for text, of_one in zip(texts, spans, strict=True):
        borders = sorted({0, len(text), *(border for span in of_one for border in span)})
        cuts = list(pairwise(borders))
        pieces.append([text[start:end] for start, end in cuts])
        learned.append([int(any(first <= start < last for first, last in of_one)) for start, _ in cuts])
    return pieces, learned


def _kept(ids: Sequence[int], marks: Sequence[int], max_length: int, bos: int | None) -> list[int]:
    """The positions of the tokens that stay.

    First the beginning goes (but for the token that begins every text), until what is before the last learned part
    is half of `max_length`, then the end.
    """
    too_many = len(ids) - max_length
    if too_many <= 0:
        return list(range(len(ids)))
    last = len(marks) - marks[::-1].index(1) if 1 in marks else len(marks)
    before = last
    while before > 0 and marks[before - 1]:
        before -= 1
    dropped = min(too_many, max(0, before - max_length // 2))
    first = int(dropped > 0 and ids[0] == bos)
    positions = [*range(first), *range(first + dropped, len(ids))]
    return positions[:max_length]


def _cut_end(kept: Sequence[int], ids: Sequence[int]) -> int:
    return int(bool(kept) and kept[-1] != len(ids) - 1)


def _lengths(splits: dict[SplitName, Split], cut: _Cut, max_length: int) -> list[str]:
    """What a user should know of the lengths."""
    total = sum(len(split) for split in splits.values())
    tokens = sum(len(split.input_ids.flat) for split in splits.values())
    learned = sum(int(split.learned.flat.sum()) for split in splits.values() if split.learned is not None)
    notes = [f"{total:,} examples have {tokens:,} tokens, of which {learned:,} are learned"]
    if cut.prompts:
        notes.append(f"{cut.prompts:,} examples are longer than {max_length} tokens: their prompts lost the beginning")
    if cut.completions:
        notes.append(f"{cut.completions:,} completions are too long for {max_length} tokens and lost their end")
    return notes
