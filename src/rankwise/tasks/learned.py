"""Examples of which parts are learned, as tokens.

A text is tokenised in pieces, cut where a learned part begins or ends: so the tokens before a completion are those
that a model is given when it is used, and no token lies across the border.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from rankwise.errors import UserError
from rankwise.tasks.examples import CHUNK, Examples, joined
from rankwise.tasks.source import SplitName
from rankwise.tasks.task import Ragged, Split, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_learned_task(
    name: str,
    splits: Mapping[SplitName, Examples],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    learn_prompts: bool = False,
    exact: bool = False,
    notes: Sequence[str],
) -> Task:
    """Tokenise three splits of examples with spans as one task; `learn_prompts` learns whole texts.

    Of a task that is only tested there is the test split alone, which stands for the others, too.

    An example that is longer than `max_length` tokens loses the beginning of its prompt, down to half of that length,
    and only then the end of its completion. Raises `UserError` where a split has nothing to learn.
    """
    parts: dict[SplitName, Split] = {}
    cut = Cut()
    for split, examples in splits.items():
        parts[split], cut_here = tokenise(tokenizer, examples, max_length, learn_prompts=learn_prompts)
        if not len(parts[split]):
            raise UserError(f"{split}: no example has a token that can be learned")
        cut += cut_here
        if examples.rivals is not None and split != "train":
            kept = examples.rivals.take(np.flatnonzero(np.isin(examples.rivals.ids, parts[split].example_ids)))
            # Their prompts are the example's own, which was counted.
            rivals, _ = tokenise(tokenizer, kept, max_length, learn_prompts=learn_prompts)
            parts[split] = replace(parts[split], rivals=rivals)
    assert tokenizer.pad_token_id is not None
    return Task(
        name=name,
        labels=(),
        outcomes=len(tokenizer),
        train=parts.get("train", parts["test"]),
        validation=parts.get("validation", parts["test"]),
        test=parts["test"],
        pad_token_id=tokenizer.pad_token_id,
        notes=(*notes, *_lengths(parts, cut, max_length, exact=exact)),
        exact=exact,
    )


@dataclass(frozen=True)
class Cut:
    """How many examples lost something, or have nothing to learn."""

    prompts: int = 0
    completions: int = 0
    unlearned: int = 0

    def __add__(self, other: Cut) -> Cut:
        return Cut(self.prompts + other.prompts, self.completions + other.completions, self.unlearned + other.unlearned)


def tokenise(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int, *, learn_prompts: bool
) -> tuple[Split, Cut]:
    """The tokens of the examples; those without one that can be learned are left out, and counted."""
    assert examples.spans is not None
    encode = _encoder(tokenizer)
    ids: list[Ragged] = []
    learned: list[Ragged] = []
    rows: list[int] = []
    cut = Cut()
    for start in range(0, len(examples), CHUNK):
        chunk = slice(start, start + CHUNK)
        pieces = list(map(_pieces, examples.texts[chunk], examples.spans[chunk]))
        encoded = iter(encode(pieces))
        chunk_ids, chunk_learned = [], []
        for row, of_one in enumerate(pieces, start=start):
            row_ids: list[int] = []
            marks: list[int] = []
            for piece in of_one:
                tokens = next(encoded)
                row_ids += tokens
                marks += [int(piece.learned)] * len(tokens)
            kept = _kept(row_ids, marks, max_length, tokenizer.bos_token_id)
            if learn_prompts:
                marks = [1] * len(marks)
            # The first token has none before it that it could be learned from.
            row_marks = [int(number > 0 and marks[position]) for number, position in enumerate(kept)]
            dropped, ended = len(row_ids) - len(kept), bool(kept) and kept[-1] == len(row_ids) - 1
            cut += Cut(
                prompts=int(kept != list(range(len(kept)))),
                completions=int(dropped > 0 and not ended),
                unlearned=int(not any(row_marks)),
            )
            if any(row_marks):
                rows.append(row)
                chunk_ids.append([row_ids[position] for position in kept])
                chunk_learned.append(row_marks)
        ids.append(Ragged.from_rows(chunk_ids))
        learned.append(Ragged.from_rows(chunk_learned))
    chosen = np.array(rows, dtype=np.int64)
    split = Split(
        example_ids=examples.ids[chosen],
        input_ids=joined(ids),
        token_type_ids=None,
        labels=examples.labels[chosen],
        groups=None if examples.groups is None else examples.groups[chosen],
        learned=joined(learned),
    )
    return split, cut


@dataclass(frozen=True)
class _Piece:
    text: str
    learned: bool
    first: bool


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> list[_Piece]:
    """The text cut at the borders of its learned parts."""
    borders = sorted({0, len(text), *(border for span in spans for border in span)})
    return [
        _Piece(text[start:end], any(begin <= start < stop for begin, stop in spans), start == 0)
        for start, end in pairwise(borders)
    ]


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[list[_Piece]]], list[list[int]]]:
    """From the pieces of texts to the tokens of each piece.

    SentencePiece begins a text with a space that is not there. So that a piece in the middle gets none, it is
    tokenised behind a line break, whose tokens are dropped.
    """

    def plain(texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        tokens: list[list[int]] = tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return tokens

    (anchor,) = plain(["\n"])
    alone, behind = plain(["a", "\na"])
    adds_space = behind[: len(anchor)] == anchor and behind[len(anchor) :] != alone

    def encode(texts: list[list[_Piece]]) -> list[list[int]]:
        pieces = [piece for of_one in texts for piece in of_one]
        tokens = plain([piece.text for piece in pieces])
        if adds_space:
            later = [index for index, piece in enumerate(pieces) if not piece.first]
            for index, behind in zip(later, plain([f"\n{pieces[index].text}" for index in later]), strict=True):
                if behind[: len(anchor)] == anchor:
                    tokens[index] = behind[len(anchor) :]
        return tokens

    return encode


def _kept(ids: Sequence[int], marks: Sequence[int], max_length: int, bos: int | None) -> list[int]:
    """The positions of the tokens that stay.

    First the beginning goes (but for the token that begins every text), until what is before the last learned part
    is half of `max_length`, then the end.
    """
    too_many = len(ids) - max_length
    if too_many <= 0:
        return list(range(len(ids)))
    before = len(marks) - marks[::-1].index(1) if 1 in marks else len(marks)
    while before > 0 and marks[before - 1]:
        before -= 1
    dropped = min(too_many, max(0, before - max_length // 2))
    first = int(dropped > 0 and ids[0] == bos)
    return [*range(first), *range(first + dropped, len(ids))][:max_length]


def _lengths(splits: dict[SplitName, Split], cut: Cut, max_length: int, *, exact: bool) -> list[str]:
    """What a user should know of the lengths."""
    total = sum(len(split) for split in splits.values())
    tokens = sum(len(split.input_ids.flat) for split in splits.values())
    learned = sum(int(split.learned.flat.sum()) for split in splits.values() if split.learned is not None)
    notes = [f"{total:,} examples have {tokens:,} tokens, of which {learned:,} are learned"]
    if cut.unlearned:
        notes.append(f"{cut.unlearned:,} examples have no token that can be learned and were left out")
    if cut.prompts:
        notes.append(f"{cut.prompts:,} examples are longer than {max_length} tokens: their prompts lost the beginning")
    if cut.completions:
        without = ", so that they count as exact without it" if exact else ""
        notes.append(
            f"{cut.completions:,} completions are too long for {max_length} tokens and lost their end{without}"
        )
    return notes
