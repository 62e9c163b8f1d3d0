"""Examples as text, and their way into a `Task`.

Splits are decided on text and labels alone, before anything is tokenised, so that a capped or a
leaking example costs no tokenising.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int

from rankwise.errors import UserError
from rankwise.tasks.task import Ragged, Split, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 4096  # examples tokenised at once: bounds the Python lists, keeps every core of a fast tokenizer busy


@dataclass(frozen=True)
class Examples:
    """Examples of one split before tokenising; `ids`, `labels` and `groups` as in `Split`.

    `spans` are, in instruction tuning, the parts of each text that are learned: (start, end) in characters. `rivals`
    are the wrong choices of a multiple choice, each with the id of its example.
    """

    ids: Int[np.ndarray, " examples"]
    texts: list[str]
    pairs: list[str] | None
    labels: Int[np.ndarray, " examples"]
    groups: Int[np.ndarray, " examples"] | None = None
    spans: list[tuple[tuple[int, int], ...]] | None = None
    rivals: Examples | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Int[np.ndarray, " rows"]) -> Examples:
        return Examples(
            ids=self.ids[rows],
            texts=[self.texts[row] for row in rows],
            pairs=None if self.pairs is None else [self.pairs[row] for row in rows],
            labels=self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
            spans=None if self.spans is None else [self.spans[row] for row in rows],
            rivals=None
            if self.rivals is None
            else self.rivals.take(np.flatnonzero(np.isin(self.rivals.ids, self.ids[rows]))),
        )


def build_task(
    name: str,
    labels: tuple[str, ...],
    splits: Mapping[Literal["train", "validation", "test"], Examples],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    notes: Sequence[str],
) -> Task:
    """Tokenise three splits, cut to `max_length` tokens (special tokens included), as one task.

    Of a task that is only tested there is the test split alone, which stands for the others, too.
    A pair loses tokens from whichever text is longer. Raises `UserError` where `max_length` leaves no
    room for text, where an example has no token, and where the tokenizer cannot pad.
    """
    special = tokenizer.num_special_tokens_to_add(pair=splits["test"].pairs is not None)
    # Below this, fast tokenizers cut nothing at all, without a word.
    if max_length <= special:
        raise UserError(f"max_length {max_length} leaves no room for text: {special} tokens are special; raise it")
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no pad token; set tokenizer.pad_token")
    tokenised = {split: _tokenise(tokenizer, examples, max_length) for split, examples in splits.items()}
    cut = sum(count for _, count in tokenised.values())
    total = sum(len(examples) for examples in splits.values())
    empty = sum(int((split.input_ids.lengths == 0).sum()) for split, _ in tokenised.values())
    if empty:
        raise UserError(f"{empty:,} of {total:,} examples have no token: the tokenizer knows none of their characters")
    if cut:
        notes = [*notes, f"{cut:,} of {total:,} examples are longer than {max_length} tokens and were cut"]
    parts = {split: of for split, (of, _) in tokenised.items()}
    return Task(
        name=name,
        labels=labels,
        outcomes=len(labels),
        train=parts.get("train", parts["test"]),
        validation=parts.get("validation", parts["test"]),
        test=parts["test"],
        pad_token_id=tokenizer.pad_token_id,
        notes=tuple(notes),
    )


def _tokenise(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> tuple[Split, int]:
    """The tokenised split, and how many of its examples were cut."""
    input_ids, token_types, cut = [], [], 0
    for start in range(0, len(examples), CHUNK):
        texts = examples.texts[start : start + CHUNK]
        pairs = None if examples.pairs is None else examples.pairs[start : start + CHUNK]
        # One token more than allowed tells what has to be cut, for every kind of tokenizer; asking a
        # fast one what it cut off takes three times as long as tokenising.
        ids, types = _encode(tokenizer, texts, pairs, max_length + 1)
        long = [row for row, tokens in enumerate(ids) if len(tokens) > max_length]
        if long:
            long_pairs = None if pairs is None else [pairs[row] for row in long]
            cut_ids, cut_types = _encode(tokenizer, [texts[row] for row in long], long_pairs, max_length)
            for position, row in enumerate(long):
                ids[row] = cut_ids[position]
                if types is not None and cut_types is not None:
                    types[row] = cut_types[position]
        cut += len(long)
        input_ids.append(Ragged.from_rows(ids))
        if types is not None:
            token_types.append(Ragged.from_rows(types))
    split = Split(
        example_ids=examples.ids,
        input_ids=joined(input_ids),
        token_type_ids=joined(token_types) if token_types else None,
        labels=examples.labels,
        groups=examples.groups,
    )
    return split, cut


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, max_length: int
) -> tuple[list[list[int]], list[list[int]] | None]:
    encoded = tokenizer(
        texts, pairs, truncation="longest_first", max_length=max_length, return_attention_mask=False, verbose=False
    )
    return encoded["input_ids"], encoded.get("token_type_ids")


def joined(parts: list[Ragged]) -> Ragged:
    """All rows of the parts, one after another."""
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([part.flat for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))
