"""How text becomes a value: what the command line and configuration files give. `UserError` says what would do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from rankwise.errors import UserError, shortened
from rankwise.patterns import check_pattern

T = TypeVar("T")

_LARGEST = {int: 10**9, float: 1e30}  # beyond these nothing is meant that could be computed
_MOST_ITEMS = 1000
_LONGEST_TEXT = 4096


def split_list(value: object) -> list[str]:
    """The items of "4,8,16", of a list, range or array, or of a single value.

    >>> split_list("4, 8"), split_list([4, 8]), split_list(range(4, 12, 4)), split_list(8)
    (['4', '8'], ['4', '8'], ['4', '8'], ['8'])
    """
    if getattr(value, "ndim", 0):  # of NumPy, pandas or torch
        value = value.tolist()  # type: ignore[attr-defined]
    items = value if isinstance(value, list | tuple | range) else _plain(value).split(",")
    if len(items) > _MOST_ITEMS:
        raise UserError(f"{len(items):,} items are more than the {_MOST_ITEMS:,} that a list may have")
    return [_plain(item).strip() for item in items]


def _plain(value: object) -> str:
    """The text of a value that has no others inside: a few lines of YAML can hold millions of them, by its aliases."""
    if isinstance(value, list | tuple | dict | set | frozenset):
        raise UserError(f"{shortened(value)} is not one value")
    try:
        return str(value)
    except ValueError:  # Python refuses to write so many digits
        raise UserError(f"{shortened(value)} is not a value that can be used") from None


def _number(value: object, kind: type[int] | type[float], low: float, what: str) -> Any:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = kind(_plain(value).strip())
    except ValueError:
        raise UserError(f"{shortened(value)} is not {what}") from None
    if not low <= number < math.inf:
        raise UserError(f"{shortened(value)} is not {what}")
    if number > _LARGEST[kind]:
        raise UserError(f"{shortened(value)} is more than {_LARGEST[kind]:g}")
    return number


def whole_number(low: int) -> Callable[[object], int]:
    return lambda value: int(_number(value, int, low, f"a whole number of at least {low}"))


def parse_positive(value: object) -> float:
    number = float(_number(value, float, 0, "a number above 0"))
    if number == 0:
        raise UserError(f"{shortened(value)} is not a number above 0")
    return number


def parse_duration(value: object) -> float:
    """Seconds of a duration; a plain number is seconds.

    >>> parse_duration("90s"), parse_duration("1.5 h"), parse_duration(30)
    (90.0, 5400.0, 30.0)
    """
    text = _plain(value).strip()
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        return parse_positive(parse_positive(text[:-1] if unit else text) * (unit or 1))
    except UserError:
        raise UserError(f"{shortened(value)} is not a duration such as 90s, 30m or 2h") from None


def parse_share(value: object) -> float:
    number = float(_number(value, float, 0, "a share from 0 to below 1"))
    if number >= 1:
        raise UserError(f"{shortened(value)} is not a share from 0 to below 1")
    return number


def parse_inner_share(value: object) -> float:
    number = parse_share(value)
    if number == 0:
        raise UserError(f"{shortened(value)} is not a share between 0 and 1")
    return number


def distinct(parse: Callable[[str], T], what: str) -> Callable[[object], tuple[T, ...]]:
    def parsed(value: object) -> tuple[T, ...]:
        items = tuple(parse(item) for item in split_list(value))
        if not items:
            raise UserError(f"no {what} is given")
        twice = sorted({str(item) for item in items if items.count(item) > 1})
        if twice:
            raise UserError(f"{what} {', '.join(twice)} given more than once")
        return items

    return parsed


def _in_any_order(value: object) -> object:
    """A set as a list, the same in every process; where the first of several counts, a set is none."""
    return sorted(value, key=str) if isinstance(value, set | frozenset) else value


def parse_ranks(value: object) -> tuple[int, ...]:
    return tuple(sorted(distinct(whole_number(1), "rank")(_in_any_order(value))))


def parse_rates(value: object) -> tuple[float, ...]:
    return tuple(sorted(distinct(parse_positive, "learning rate")(_in_any_order(value))))


def parse_targets(value: object) -> str | tuple[str, ...]:
    """`all-linear` and regular expressions stay text, names become a list.

    >>> parse_targets("q_proj,v_proj"), parse_targets("query"), parse_targets(r".*[qv]_proj")
    (('q_proj', 'v_proj'), ('query',), '.*[qv]_proj')
    """
    if isinstance(value, str) and (value == "all-linear" or re.search(r"[*+?()\[\]|\\^$]", value)):
        try:
            check_pattern(value)
        except ValueError as error:
            raise UserError(f"{shortened(value)} is no regular expression to match with: {error}") from None
        return value
    return tuple(dict.fromkeys(split_list(_in_any_order(value))))


def parse_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise UserError(f"{shortened(value)} is not true or false")


def parse_text(value: object) -> str:
    if isinstance(value, str) and value.strip() and len(value) <= _LONGEST_TEXT:
        return value
    raise UserError(f"{shortened(value)} is not a text")


def one_of(*choices: str) -> Callable[[object], Any]:
    def parsed(value: object) -> str:
        if value not in choices:
            raise UserError(f"{shortened(value)} is not one of {', '.join(choices)}")
        return str(value)

    return parsed
