"""Other texts than the task's: what a language model makes of them before and after says what it forgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankwise.errors import UserError
from rankwise.tasks.conversation import SHAPES, begin
from rankwise.tasks.instruction import rendered_examples
from rankwise.tasks.learned import tokenise
from rankwise.tasks.source import Source, expanded, read_tables
from rankwise.tasks.task import Ragged, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_retained(source: Source, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Split:
    """A `.txt` file, cut into pieces of `max_length` tokens, or examples of the shapes that a task may have.

    Raises `UserError` (one line) for data that cannot be used as it is.
    """
    source = expanded(source)
    if isinstance(source, str | Path) and Path(source).suffix == ".txt":
        try:
            text = Path(source).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{source}: not UTF-8 text (byte {error.start})") from error
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error.strerror})") from error
        split = cut_into_pieces([text], tokenizer, max_length)
        if not len(split):
            raise UserError(f"{source}: too short, fewer than 2 tokens")
        return split
    tables = read_tables(source, None, None, SHAPES)
    table = tables.get("test", tables["train"])
    examples, bad, *_ = rendered_examples(table, tokenizer)
    if bad:
        raise UserError(f"{bad[0]}; repair it, or leave it out")
    if not len(examples):
        raise UserError(f"{table.origin}: no rows")
    split, _ = tokenise(tokenizer, examples, max_length, learn_prompts=False)
    if not len(split):
        raise UserError(f"{table.origin}: no example has a token to score")
    return split


def cut_into_pieces(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Split:
    """Texts as pieces of `max_length` tokens, each behind the tokenizer's own beginning; all else is scored.

    `Split.groups` numbers the texts where there are several.
    """
    first = tokenizer(begin(tokenizer), add_special_tokens=False)["input_ids"] if begin(tokenizer) else []
    size = max_length - len(first)
    tokenised = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [
        (number, [*first, *tokens[start : start + size]])
        for number, tokens in enumerate(tokenised)
        for start in range(0, len(tokens), size)
    ]
    pieces = [(number, tokens) for number, tokens in pieces if len(tokens) > 1]
    rows = [tokens for _, tokens in pieces]
    return Split(
        example_ids=np.arange(len(rows)),
        input_ids=Ragged.from_rows(rows),
        token_type_ids=None,
        labels=np.zeros(len(rows), dtype=np.int64),
        groups=np.array([number for number, _ in pieces]) if len(texts) > 1 else None,
        learned=Ragged.from_rows([[0, *[1] * (len(row) - 1)] for row in rows]),
    )
