"""JSON Lines, and JSON files that hold an array of objects. Numbers of columns keep their spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import UserError, reason_of
from rankwise.tasks.files.lines import lines_of
from rankwise.tasks.files.table import MOST_BYTES, TOO_LARGE, Shape, Spelled, Table, choose_columns

_OPENING, _COMMA, _CLOSING = (re.compile(rf"[ \t\n\r]*{sign}[ \t\n\r]*") for sign in (r"\[", ",", r"\]"))


# NaN is how some writers say that a value is missing.
_JSON = json.JSONDecoder(
    parse_int=Spelled, parse_float=Spelled, parse_constant=lambda name: None if name == "NaN" else name
)


def read_jsonl(path: Path, shapes: Sequence[Shape], damaged: list[str] | None) -> Table:
    def lines() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(lines_of(path), start=1):
            if line.strip():
                try:
                    yield number, _record(_JSON.decode(line))
                except (ValueError, RecursionError) as error:
                    yield number, error

    return _objects(path, lines(), shapes, damaged, "each line must hold one object")


def read_json(path: Path, shapes: Sequence[Shape], damaged: list[str] | None) -> Table:
    """An array of objects. It is read object by object, so that of each only the columns are kept."""
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: takes {TOO_LARGE}; give it as JSON Lines, or a part of it")
    return _objects(path, _elements(path), shapes, damaged, "the file must hold an array of objects")


def _elements(path: Path) -> Iterator[tuple[int, Any]]:
    """What an array holds, with the line that each begins on."""
    text = "".join(lines_of(path))
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
    return json.loads(value) if isinstance(value, Spelled) and not spelled else value


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
