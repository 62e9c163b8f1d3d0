"""What is taken out of a source: columns of values as they stand there."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankwise.errors import UserError, shortened

MOST_BYTES = 4 * 2**30  # that a compressed file may stand for, or a JSON file take
TOO_LARGE = f"more than {MOST_BYTES / 2**30:g} GiB"


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


class Spelled(str):
    """A number, as it is written in a file."""


@dataclass(frozen=True)
class Table:
    """Columns of one source before any check; None is a missing value.

    `lines` are the rows' line numbers where the source has lines. `class_names` are the names, in
    order, of columns for which the source declares them. `typed` is whether the source tells numbers from texts.
    """

    origin: str
    columns: dict[str, list[Any]]
    lines: Sequence[int] | None = None
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    typed: bool = True

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
