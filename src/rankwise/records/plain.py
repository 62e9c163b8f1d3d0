"""Records as JSON has them, and back."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def plain(value: object) -> object:
    """`value` as it is read back from JSON, which has no word for a figure that is not finite: that is None."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def record_of(kind: type[Record], document: Mapping[str, Any]) -> Record:
    """A record from what JSON made of it; a figure that was not finite is NaN.

    Raises `KeyError`, `TypeError` or `ValueError` for a document that is not one of this record.
    """
    hints = get_type_hints(kind)
    known: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in document or field.default is dataclasses.MISSING:
            known[field.name] = _value_of(hints[field.name], document[field.name])
    return kind(**known)


def _value_of(hint: Any, value: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        # Of several kinds JSON's own types tell a text from a list.
        kinds = [kind for kind in inner if kind is not type(None)]
        lists = [kind for kind in kinds if get_origin(kind) is tuple]
        return _value_of(lists[0] if lists and isinstance(value, list) else kinds[0], value)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list")
        return tuple(_value_of(inner[0], each) for each in value)
    if dataclasses.is_dataclass(hint):
        return record_of(hint, value)  # type: ignore[arg-type]
    if hint is Path:
        return Path(value)
    if hint is float:
        return math.nan if value is None else float(value)
    return value
