"""Where examples come from: a data file, a pandas DataFrame, a `datasets.Dataset`, or the name of a data set.

Whatever the source, what comes out is text. A text column is never guessed at (see `files`), numbers and
booleans appear as JSON writes them, and a value that is missing or blank is the user's to repair: an
example without text would train on padding.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

from rankwise.errors import UserError, reason_of, shortened
from rankwise.tasks.files import READERS, read_file
from rankwise.tasks.files.table import Shape, Spelled, Table, choose_columns, name_classes, quoted

if TYPE_CHECKING:
    import datasets
    import pandas as pd

Source: TypeAlias = Union[str, Path, "pd.DataFrame", "datasets.Dataset"]
SplitName = Literal["train", "validation", "test"]
Caps: TypeAlias = Mapping[SplitName, int | None]  # the most examples of a split to use, of others all
NO_CAPS: Caps = {}

_INTEGER = re.compile(r"-?[0-9]+(\.0+)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Rows:
    """Columns of text, all of one length, none missing or blank.

    `class_names` holds, for columns whose source declares its classes, their names in order. `numeric` are the columns
    that hold numbers alone, or what looks like numbers where the source does not tell them from texts.
    """

    origin: str
    columns: dict[str, list[str]]
    class_names: dict[str, tuple[str, ...]]
    numeric: frozenset[str]


def read_splits(
    train: Source, validation: Source | None, test: Source | None, columns: Sequence[str]
) -> dict[SplitName, Rows]:
    """Read the named columns of what there is of the three splits as text.

    Raises `UserError` (one line: file, column, line) for whatever cannot be used as it is.

    >>> import pandas as pd
    >>> read_splits(pd.DataFrame({"text": ["NA", 12, True]}), None, None, ["text"])["train"].columns
    {'text': ['NA', '12', 'true']}
    """
    tables = read_tables(train, validation, test, [Shape(tuple(columns))])
    return {split: _checked(table) for split, table in tables.items()}


def read_tables(
    train: Source,
    validation: Source | None,
    test: Source | None,
    shapes: Sequence[Shape],
    damaged: list[str] | None = None,
) -> dict[SplitName, Table]:
    """Read what there is of the three splits, each in the first of the shapes that it has; values as they are.

    Lines that are no JSON object are left out where `damaged` is given, which is told of each.

    Where only `train` is given and names a data set, that data set's own validation and test splits are
    taken too; one whose classes are all hidden (-1, as benchmarks publish their test sets) is left out.
    """
    train = expanded(train)
    given: dict[SplitName, Source | None] = {"train": train, "validation": validation, "test": test}
    if validation is not None or test is not None or not _names_data_set(train):
        return {split: _table(source, shapes, split, damaged) for split, source in given.items() if source is not None}
    parts, typed = _load_named(str(train), shapes)
    tables = {
        split: _part(parts, split, shapes, name=str(train), typed=typed)
        for split in given
        if split == "train" or ("train" in parts and split in parts)
    }
    return {split: table for split, table in tables.items() if split == "train" or not _hidden(table)}


def read_test_rows(test: Source, columns: Sequence[str]) -> Rows:
    """`read_splits` of a test split alone."""
    return _checked(read_test_table(test, [Shape(tuple(columns))]))


def read_test_table(test: Source, shapes: Sequence[Shape], damaged: list[str] | None = None) -> Table:
    """`read_tables` of a test split alone."""
    return _table(test, shapes, "test", damaged)


def expanded(source: Source) -> Source:
    """A path that begins with `~` with the home directory in its place, where there is such a one."""
    if isinstance(source, str | Path) and str(source).startswith("~"):
        with suppress(RuntimeError, ValueError):
            path = Path(source).expanduser()
            return path if isinstance(source, Path) else str(path)
    return source


def _table(source: Source, shapes: Sequence[Shape], split: SplitName, damaged: list[str] | None = None) -> Table:
    source = expanded(source)
    if _names_data_set(source):
        parts, typed = _load_named(str(source), shapes)
        return _part(parts, split, shapes, name=str(source), typed=typed)
    return _read(source, shapes, split, damaged)


def _names_data_set(source: Source) -> bool:
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{shortened(str(source))}: cannot be read ({error.strerror})") from error
    if exists or isinstance(source, Path):
        return path.is_dir()
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    return not is_path and path.suffix.lower() not in READERS


def _load_named(name: str, shapes: Sequence[Shape]) -> tuple[datasets.DatasetDict, bool]:
    """All splits of a hub data set or a local directory, its CSV files read as text, or of what `datasets` saved.

    With it, whether it tells numbers from texts.
    """
    import datasets
    from datasets.packaged_modules.csv.csv import CsvConfig

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs is said again in our one line
    try:
        if any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            return _saved(name), True
        # It takes its name from the path's last part, which "." does not have.
        place = str(Path(name).resolve()) if Path(name).is_dir() else name
        builder = datasets.load_dataset_builder(place)
        as_text: dict[str, Any] = {}
        if isinstance(builder.config, CsvConfig):
            as_text = {"keep_default_na": False, "na_filter": False}
            if builder.config.features is None:
                as_text["converters"] = {column: str for shape in shapes for column in shape.columns}
        return datasets.load_dataset(place, **as_text), "converters" not in as_text
    # Loading runs through a hub client, file systems and parsers, each with errors of its own.
    except Exception as error:
        what = (
            f"directory {name}" if Path(name).is_dir() else f"{name}: no such file or directory, and as a data set it"
        )
        reason = reason_of(error.__cause__ or error)
        raise UserError(f"{what} could not be loaded: {reason}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _saved(directory: str) -> datasets.DatasetDict:
    """What `save_to_disk` wrote: its own files alone, for `map` and `filter` leave other Arrow files beside them."""
    import datasets

    loaded = datasets.load_from_disk(directory)
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    if not parts:
        raise ValueError("its dataset_dict.json names no split; save it anew")
    for part in parts.values():
        part.data.validate(full=True)  # loading maps the files, and a process may end that reads damaged ones
    return datasets.DatasetDict(parts)


def _part(parts: datasets.DatasetDict, split: SplitName, shapes: Sequence[Shape], *, name: str, typed: bool) -> Table:
    if split not in parts and len(parts) > 1:
        raise UserError(
            f"data set {name} has no {split} split, only {quoted(parts)}; pass the one you mean as a Dataset"
        )
    chosen = split if split in parts else next(iter(parts))
    return replace(_from_dataset(parts[chosen], shapes, f"{name} ({chosen} split)"), typed=typed)


def _hidden(table: Table) -> bool:
    return any(all(value is None for value in table.columns[column]) for column in table.class_names)


def _read(source: Source, shapes: Sequence[Shape], split: SplitName, damaged: list[str] | None) -> Table:
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise UserError(f"{path}: no such file")
        return read_file(path, shapes, damaged)

    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return _from_frame(source, shapes, f"{split} DataFrame")

    import datasets

    if isinstance(source, datasets.Dataset):
        return _from_dataset(source, shapes, f"{split} Dataset")
    raise UserError(
        f"{split}: cannot read a {type(source).__name__}; "
        "give a file, a data set's name, a pandas DataFrame or a datasets.Dataset"
    )


def _from_frame(frame: pd.DataFrame, shapes: Sequence[Shape], origin: str) -> Table:
    frame = frame.set_axis([str(column) for column in frame.columns], axis=1)
    columns = choose_columns(origin, list(frame.columns), shapes)
    frame = frame.reindex(columns=list(columns))
    # pandas has four spellings of a missing value; only `isna` knows them all.
    values = {column: frame[column].astype(object).where(frame[column].notna(), None).tolist() for column in columns}
    return Table(origin, values)


def _from_dataset(dataset: datasets.Dataset, shapes: Sequence[Shape], origin: str) -> Table:
    columns = choose_columns(origin, dataset.column_names, shapes)
    plain = dataset.with_format(None)
    values = {
        column: list(plain[column]) if column in dataset.column_names else [None] * len(dataset) for column in columns
    }
    return name_classes(Table(origin, values), dataset.features)


def _checked(table: Table) -> Rows:
    """The values as text, or the first column that has something else."""
    if not any(table.columns.values()):
        raise UserError(f"{table.origin}: no rows")
    texts = {column: _texts(table, column, values) for column, values in table.columns.items()}
    numeric = {
        column
        for column, values in table.columns.items()
        if all(
            (not table.typed or isinstance(value, Spelled) or not isinstance(value, str))
            and _NUMBER.fullmatch(text.strip())
            for value, text in zip(values, texts[column], strict=True)
        )
    }
    return Rows(table.origin, texts, table.class_names, frozenset(numeric))


def _texts(table: Table, column: str, values: Sequence[Any]) -> list[str]:
    where = f"{table.origin}: column {column!r}"
    missing = [row for row, value in enumerate(values) if is_missing(value)]
    if missing:
        raise UserError(f"{where} has no value in {_count_places(table, missing)}; fill it in or remove the row")
    texts = []
    for row, value in enumerate(values):
        text = as_text(value)
        if text is None:
            raise UserError(f"{where} holds a {type(value).__name__} on {table.place(row)}; text is needed")
        texts.append(text)
    blank = [row for row, text in enumerate(texts) if not text.strip()]
    if blank:
        raise UserError(f"{where} is empty in {_count_places(table, blank)}; fill it in or remove the row")
    for row, text in enumerate(texts):
        if not is_unicode(text):
            raise UserError(f"{where} is not valid Unicode on {table.place(row)} (half of a surrogate pair); repair it")
    return texts


def _count_places(table: Table, rows: list[int]) -> str:
    return f"{len(rows)} of {len(next(iter(table.columns.values())))} rows, first on {table.place(rows[0])}"


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str | None:
    """Text as it is, numbers and booleans as JSON writes them, nothing for anything else."""
    if isinstance(value, str):
        return str(value)
    # The command line reads no tables, and need not wait for numpy.
    import numpy as np

    if isinstance(value, np.generic):
        value = value.item()
    return json.dumps(value) if isinstance(value, bool | int | float) else None


def is_integer(text: str) -> bool:
    """Whether it is one, be it written as 1 or as 1.0."""
    return _INTEGER.fullmatch(text) is not None


def without_fraction(text: str) -> str:
    """An integer as it is written without one, any other text as it is."""
    return text.partition(".")[0] if is_integer(text) else text


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
