"""Values out of CSV, TSV, JSON Lines, JSON and Parquet files, exactly as they are written there.

The usual loaders guess: `NA` and `null` become missing values, `12` a number, `true` a boolean, a
short row is filled up, a doubled column renamed. In a text column each guess silently changes an
example, so CSV goes through the standard library's parser, which guesses nothing and knows line
numbers, and the numbers of JSON columns keep their spelling. It is slower than pandas' parser (about a second for
a million short rows), far below what tokenising the same rows takes.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from rankwise.errors import UserError, reason_of, shortened

_LONGEST_FIELD = 2**31 - 1  # what a C long holds on every platform
MOST_UNPACKED = 4 * 2**30  # bytes that a compressed file may stand for, or a JSON file take
_TOO_LARGE = f"unpacked it takes more than {MOST_UNPACKED / 2**30:g} GiB; give a part of it"
_BATCH = 256  # rows
_OPENING, _COMMA, _CLOSING = (re.compile(rf"[ \t\n\r]*{sign}[ \t\n\r]*") for sign in (r"\[", ",", r"\]"))  # JSON's


class _Spelled(str):
    """A number of JSON's, as it is written."""


# NaN is how some writers say that a value is missing.
_JSON = json.JSONDecoder(
    parse_int=_Spelled, parse_float=_Spelled, parse_constant=lambda name: None if name == "NaN" else name
)


@dataclass(frozen=True)
class Shape:
    """Columns that belong together: a source has all of `required`, and may have some of `optional`.

    `beside` is needed, too, and says nothing of which shape a source has; it may be one of the others.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.required + self.optional + self.beside))


@dataclass(frozen=True)
class Table:
    """Columns of one source before any check; None is a missing value.

    `lines` are the rows' line numbers where the source has lines. `class_names` are the names, in
    order, of columns for which the source declares them.
    """

    origin: str
    columns: dict[str, list[Any]]
    lines: Sequence[int] | None = None
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def place(self, row: int) -> str:
        return f"row {row} (counted from 0)" if self.lines is None else f"line {self.lines[row]}"


def choose_columns(origin: str, available: Sequence[str], shapes: Sequence[Shape]) -> tuple[str, ...]:
    """The columns of the first shape that the source has.

    Raises `UserError` where it has none (of a single shape every missing column is named), or a column twice.
    """
    shape = shape_of(available, shapes)
    if shape is None and len(shapes) > 1:
        wanted = ", or ".join(" and ".join(shape.required) for shape in shapes)
        raise UserError(f"{origin}: its columns are {quoted(available)}; needed are {wanted}")
    shape = shape or shapes[0]
    missing = [column for column in (*shape.required, *shape.beside) if column not in available]
    if missing:
        close = difflib.get_close_matches(missing[0], available, n=1)
        hint = f"; did you mean {quoted(close)}?" if close else ""
        raise UserError(f"{origin}: no column {quoted(missing)}; its columns are {quoted(available)}{hint}")
    twice = sorted({column for column in available if available.count(column) > 1})
    if twice:
        raise UserError(f"{origin}: column {quoted(twice)} occurs more than once; rename one of them")
    return shape.columns


def shape_of(available: Collection[str], shapes: Sequence[Shape]) -> Shape | None:
    """The first of the shapes that a source with these columns has."""
    return next((shape for shape in shapes if set(shape.required) <= set(available)), None)


def quoted(names: Collection[str], *, most: int = 12) -> str:
    """Names for a message, on one line whatever they contain: 'a', 'b' …"""
    shown = [repr(name if len(name) <= 60 else f"{name[:60]}…") for name in list(names)[:most]]
    return ", ".join(shown) + (f" … ({len(names)} in all)" if len(names) > most else "")


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


def _read_csv(path: Path, shapes: Sequence[Shape], _: list[str] | None) -> Table:
    return _read_delimited(path, shapes, ",")


def _read_tsv(path: Path, shapes: Sequence[Shape], _: list[str] | None) -> Table:
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
    return Table(str(path), dict(zip(columns, values, strict=True)), lines)


def _records(path: Path, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """Records with the line they start on."""
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
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


def _read_jsonl(path: Path, shapes: Sequence[Shape], damaged: list[str] | None) -> Table:
    def lines() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                try:
                    yield number, _record(_JSON.decode(line))
                except (ValueError, RecursionError) as error:
                    yield number, error

    return _objects(path, lines(), shapes, damaged, "each line must hold one object")


def _read_json(path: Path, shapes: Sequence[Shape], damaged: list[str] | None) -> Table:
    """An array of objects. It is read object by object, so that of each only the columns are kept."""
    if path.stat().st_size > MOST_UNPACKED:
        raise UserError(
            f"{path}: takes more than {MOST_UNPACKED / 2**30:g} GiB; give it as JSON Lines, or a part of it"
        )
    return _objects(path, _elements(path), shapes, damaged, "the file must hold an array of objects")


def _elements(path: Path) -> Iterator[tuple[int, Any]]:
    """What an array holds, with the line that each begins on."""
    text = "".join(_lines(path))
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    between = _OPENING.match(text)
    if between is None:
        raise UserError(
            f"{path}: not an array of objects, which a .json file must hold; with one object a line, name it .jsonl"
        )
    line, at, end = 1, 0, between.end()
    if not _CLOSING.match(text, end):
        while between:
            line, at = line + text.count("\n", at, between.end()), between.end()
            try:
                element, end = _JSON.raw_decode(text, at)
                element = _record(element)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {line}: {_not_json(error)}") from error
            yield line, element
            between = _COMMA.match(text, end)
    closing = _CLOSING.match(text, end)
    if closing is None or closing.end() < len(text):
        line += text.count("\n", at, end)
        raise UserError(f"{path}, line {line}: not JSON (after this the array neither goes on nor ends)")


def _record(element: Any) -> Any:
    """A row, in which texts, labels and choices are as they are written; objects within it hold numbers."""
    if not isinstance(element, dict):
        return element
    return {column: _with_numbers(value, spelled=True) for column, value in element.items()}


def _with_numbers(value: Any, *, spelled: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _with_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_numbers(each, spelled=spelled) for each in value]
    return json.loads(value) if isinstance(value, _Spelled) and not spelled else value


def _not_json(error: Exception) -> str:
    return f"not JSON ({reason_of(error)})"


def _objects(
    path: Path, found: Iterator[tuple[int, Any]], shapes: Sequence[Shape], damaged: list[str] | None, needed: str
) -> Table:
    """The columns of what was found on lines: objects, or else errors and values that are none."""
    values: dict[str, list[Any]] = {}
    lines: list[int] = []
    for line, record in found:
        if not isinstance(record, dict):
            why = _not_json(record) if isinstance(record, Exception) else "not a JSON object"
            wrong = f"{path}, line {line}: {why}"
            if damaged is None:
                raise UserError(f"{wrong}; {needed}")
            damaged.append(wrong)
            continue
        if not lines:
            values = {column: [] for column in choose_columns(str(path), list(record), shapes)}
        for column, column_values in values.items():
            column_values.append(record.get(column))
        lines.append(line)
    return Table(str(path), values or {column: [] for column in shapes[0].columns}, lines)


def _read_parquet(path: Path, shapes: Sequence[Shape], _: list[str] | None) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            columns = choose_columns(str(path), schema.names, shapes)
            present = [column for column in columns if column in schema.names]
            # A few kilobytes can stand for any number of bytes: they are counted before any are kept.
            taken = 0
            for batch in file.iter_batches(_BATCH, columns=present):
                taken += sum(column.cast(_written_out(column.type)).nbytes for column in batch) + 64 * len(batch)
                if taken > MOST_UNPACKED:
                    raise UserError(f"{path}: {_TOO_LARGE}")
            table = file.read(columns=present)
            values = {
                column: table[column].to_pylist() if column in present else [None] * len(table) for column in columns
            }
    # Numbers, dates and texts may be such as Python has none of.
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({reason_of(error)})") from error
    if b"huggingface" in (schema.metadata or {}):
        from datasets import Features

        try:
            features = Features.from_arrow_schema(schema)
        # They are JSON that `datasets` trusts.
        except Exception as error:
            raise UserError(
                f"{path}: what it says of its columns for `datasets` is damaged ({reason_of(error)})"
            ) from error
        return name_classes(Table(str(path), values), features)
    return Table(str(path), values)


def _written_out(kind: Any) -> Any:
    """An Arrow type without dictionaries, in which a text of megabytes stands once for any number of rows."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _written_out(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_written_out(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_written_out(field.type)) for field in kind])
    return kind


def check_unpacked(path: Path) -> None:
    """Raise `UserError` for a Parquet file that says itself that it is far larger than it looks."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    if sum(max(column.total_uncompressed_size, 8 * column.num_values) for column in columns) > MOST_UNPACKED:
        raise UserError(f"{path}: {_TOO_LARGE}")


def name_classes(table: Table, features: Any) -> Table:
    """Class numbers replaced by the names that `datasets` features declare; -1 means unlabelled there."""
    columns, class_names = dict(table.columns), {}
    for column, values in table.columns.items():
        names = getattr(features.get(column), "names", None)
        if names is not None:
            if not all(isinstance(name, str) for name in names):
                raise UserError(f"{table.origin}: column {column!r} has classes whose names are no texts")
            for value in values:
                if not (value is None or (isinstance(value, int) and value < len(names))):
                    raise UserError(
                        f"{table.origin}: column {column!r} holds {shortened(value)}, which is none of its classes"
                    )
            columns[column] = [None if value is None or value < 0 else names[value] for value in values]
            class_names[column] = tuple(names)
    return Table(table.origin, columns, table.lines, class_names)


def _lines(path: Path) -> Iterator[str]:
    """Lines as UTF-8, a byte order mark dropped. Bytes are split first, so a bad one has a line number."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8"
                ) from error


_Reader: TypeAlias = Callable[[Path, Sequence[Shape], list[str] | None], Table]
READERS: dict[str, _Reader] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json-lines": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
