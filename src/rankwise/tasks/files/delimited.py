"""CSV and TSV, by the standard library's parser."""

from __future__ import annotations

import csv
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from rankwise.errors import UserError, reason_of
from rankwise.tasks.files.lines import lines_of
from rankwise.tasks.files.table import Shape, Table, choose_columns, shape_of

_LONGEST_FIELD = 2**31 - 1  # what a C long holds on every platform


def read_csv(path: Path, shapes: Sequence[Shape], _: list[str] | None) -> Table:
    return _read_delimited(path, shapes, ",")


def read_tsv(path: Path, shapes: Sequence[Shape], _: list[str] | None) -> Table:
    return _read_delimited(path, shapes, "\t")


def _read_delimited(path: Path, shapes: Sequence[Shape], delimiter: str) -> Table:
    """CSV as RFC 4180 has it: a header, fields quoted with doubled quotes inside; blank lines are skipped."""
    # Closed at once where a row is refused: the csv module's limit is everybody's.
    with closing(_records(path, delimiter)) as records:
        _, header = next(records, (1, None))
        if header is None:
            raise UserError(f"{path}: the file is empty")
        other = next((sign for sign in ";,\t|" if len(header) == 1 and sign in header[0]), None)
        if other is not None and shape_of(header, shapes) is None:
            raise UserError(
                f"{path}: its fields are separated by {other!r}, and {path.suffix} has {delimiter!r} between them; "
                "write it so"
            )
        columns = choose_columns(str(path), header, shapes)
        positions = [header.index(column) if column in header else None for column in columns]
        rows, lines = [], []
        for line, record in records:
            if len(record) != len(header):
                raise UserError(
                    f"{path}, line {line}: {len(record)} fields where the header has {len(header)}; "
                    f"fields that contain {delimiter!r}, quotes or line breaks must be quoted"
                )
            rows.append([None if position is None else record[position] for position in positions])
            lines.append(line)
    values = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in columns]
    return Table(str(path), dict(zip(columns, values, strict=True)), lines, typed=False)


def _records(path: Path, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """Records with the line they start on."""
    reader = csv.reader(lines_of(path), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader, None)
            except csv.Error as error:
                where, reason = f"{path}, line {line}: not valid CSV", reason_of(error)
                if "new-line character" in reason:
                    raise UserError(f"{where}: a carriage return alone; end lines with line feeds") from error
                raise UserError(
                    f"{where} ({reason}); a field with quotes or line breaks inside must be quoted, "
                    "and those quotes doubled"
                ) from error
            if record is None:
                return
            if record:
                yield line, record
    finally:
        csv.field_size_limit(limit)
