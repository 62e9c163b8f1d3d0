"""Parquet files, whose few kilobytes may stand for any number of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import UserError, reason_of
from rankwise.tasks.files.table import MOST_BYTES, TOO_LARGE, Shape, Table, choose_columns, name_classes

_BATCH = 256  # rows


def read_parquet(path: Path, shapes: Sequence[Shape], _: list[str] | None) -> Table:
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
                if taken > MOST_BYTES:
                    raise UserError(f"{path}: unpacked it takes {TOO_LARGE}; give a part of it")
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
    """Raise `UserError` for a Parquet file of plain columns that says itself that it is far larger than it looks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if any(pa.types.is_nested(field.type) for field in file.schema_arrow):
            raise UserError(f"{path}: a column holds lists or records")
        # Not column by column: pyarrow ends the process where the description of one is damaged.
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        values = sum(group.num_rows for group in groups) * file.metadata.num_columns
    if max(sum(group.total_byte_size for group in groups), 8 * values) > MOST_BYTES:
        raise UserError(f"{path}: unpacked it takes {TOO_LARGE}; give a part of it")
