"""Records as JSON has them, and back."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rankwise.errors import shortened

Record = TypeVar("Record")

_LARGEST = 2**63 - 1


def plain(value: object) -> object:
    """`value` as it is read back from JSON, which has no word for a figure that is not finite: that is None."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def record_of(kind: type[Record], document: Mapping[str, Any]) -> Record:
    """A record from what JSON made of it; a figure that was not finite is NaN.

    Raises `KeyError` or `ValueError` for a document that is not one of this record, its values' types included: it may
    have been made by somebody else.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"{shortened(document)} is no {kind.__name__}")
    hints = _hints(kind)  # type: ignore[arg-type]
    known: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in document or field.default is dataclasses.MISSING:
            known[field.name] = value_of(hints[field.name], document[field.name])
    return kind(**known)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def value_of(hint: Any, value: Any) -> Any:
    """A value from what JSON made of it, of a type that a record's field may have. Raises as `record_of` does."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        # Of several kinds JSON's own types tell a text from a list.
        kinds = [kind for kind in inner if kind is not type(None)]
        lists = [kind for kind in kinds if get_origin(kind) is tuple]
        return value_of(lists[0] if lists and isinstance(value, list) else kinds[0], value)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{shortened(value)} is no list")
        return tuple(value_of(inner[0], each) for each in value)
    if dataclasses.is_dataclass(hint):
        return record_of(hint, value)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{shortened(value)} is none of {', '.join(map(str, inner))}")
        return value
    if hint is float and value is None:
        return math.nan
    wanted: Any = {Path: str, float: (int, float)}.get(hint, hint)
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{shortened(value)} is no {hint.__name__}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{shortened(value)} is too large")
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair could not be written again
    return hint(value)
