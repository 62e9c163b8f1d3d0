"""Regular expressions that others wrote: which of them are safe to match names with."""

from __future__ import annotations

import re

# Python's own reading of an expression. It is not public; in its place would stand a parser of our own.
import re._parser as _parser  # type: ignore[import-not-found]
from typing import Any

_MOST_REPETITIONS = 5
_REPEATS = (_parser.MAX_REPEAT, _parser.MIN_REPEAT, _parser.POSSESSIVE_REPEAT)


def check_pattern(pattern: str) -> None:
    r"""Raise `ValueError` for a regular expression that is none, or that could take for ever to match a name.

    Python's matcher tries every way in which repetitions can share a text; where they hold each other, or
    alternatives, there are exponentially many. More are refused than need be.

    >>> check_pattern(r".*layers\.\d+\..*(q|v)_proj")
    >>> check_pattern("(a+)+$")
    Traceback (most recent call last):
    ValueError: what is repeated holds repetitions or alternatives
    """
    try:
        re.compile(pattern)
        tree = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if _repetitions(tree) > _MOST_REPETITIONS:
        raise ValueError(f"it has more than {_MOST_REPETITIONS} repetitions")


def _repetitions(tree: Any) -> int:
    """How many there are."""
    count = 0
    for name, value in tree:
        inner = [part for part in _parts(value) if isinstance(part, _parser.SubPattern)]
        within = sum(map(_repetitions, inner))
        count += within
        if name in _REPEATS and value[1] > 1:
            if within or any(_has_alternatives(part) for part in inner):
                raise ValueError("what is repeated holds repetitions or alternatives")
            count += 1
        if str(name) == "GROUPREF":
            raise ValueError("it refers back to a group")
    return count


def _has_alternatives(tree: Any) -> bool:
    return any(
        str(name) == "BRANCH"
        or any(_has_alternatives(part) for part in _parts(value) if isinstance(part, _parser.SubPattern))
        for name, value in tree
    )


def _parts(value: Any) -> list[Any]:
    """A node's value, and what is in it, to where other nodes begin."""
    if isinstance(value, tuple | list):
        return [part for each in value for part in _parts(each)]
    return [value]
