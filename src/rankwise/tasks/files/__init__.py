"""Values out of CSV, TSV, JSON Lines, JSON and Parquet files, exactly as they are written there.

The usual loaders guess: `NA` and `null` become missing values, `12` a number, `true` a boolean, a
short row is filled up, a doubled column renamed. In a text column each guess silently changes an
example, so CSV goes through the standard library's parser, which guesses nothing and knows line
numbers, and the numbers of JSON columns keep their spelling. It is slower than pandas' parser (about a second for
a million short rows), far below what tokenising the same rows takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from rankwise.errors import UserError, reason_of
from rankwise.tasks.files.delimited import read_csv, read_tsv
from rankwise.tasks.files.json_text import read_json, read_jsonl
from rankwise.tasks.files.parquet import read_parquet
from rankwise.tasks.files.table import Shape, Table

_Reader: TypeAlias = Callable[[Path, Sequence[Shape], list[str] | None], Table]
READERS: dict[str, _Reader] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json-lines": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}


def read_file(path: Path, shapes: Sequence[Shape], damaged: list[str] | None = None) -> Table:
    """Read the columns of one of the shapes from a data file, by its suffix.

    JSON and JSON Lines: what should be an object and is none is an error, or where `damaged` is given is told to it
    and left out.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; use {', '.join(READERS)}")
    try:
        return reader(path, shapes, damaged)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or reason_of(error)})") from error
