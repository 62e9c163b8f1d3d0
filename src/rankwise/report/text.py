"""Quantities as a person reads them. A quantity that was not measured is a dash."""

from __future__ import annotations

import math
import re
from unicodedata import bidirectional

DASH = "–"
ISOLATE, POP_ISOLATE = "\u2068", "\u2069"  # Unicode's marks around text with a direction of its own
_DIRECTING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def bytes_text(count: int | None) -> str:
    """Decimal units, three digits.

    >>> bytes_text(22_552_772_608), bytes_text(999_600), bytes_text(None)
    ('22.6 GB', '1 MB', '–')
    """
    if count is None:
        return DASH
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def seconds_text(seconds: float) -> str:
    """Two units at most, none finer than the quantity deserves; a dash for a time that is not finite.

    >>> seconds_text(0.25), seconds_text(42.3), seconds_text(966.7), seconds_text(6724), seconds_text(math.nan)
    ('0.25 s', '42 s', '16 min 07 s', '1 h 52 min', '–')
    """
    if not math.isfinite(seconds):
        return DASH
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def share_text(share: float) -> str:
    """A share of 1 in percent.

    >>> share_text(0.8694)
    '86.9 %'
    """
    return f"{100 * share:.1f} %" if math.isfinite(share) else DASH


def nll_text(nll: float) -> str:
    """Nats, three decimals; a dash for a loss that is not finite."""
    return f"{nll:.3f}" if math.isfinite(nll) else DASH


def isolated(name: str) -> str:
    """A text of someone else's, which may run from right to left: it does not turn what stands around it.

    Marks in it that direct the text after them are left out.

    >>> isolated("llama"), isolated("משימה"), isolated("a\\u202eb")
    ('llama', '\\u2068משימה\\u2069', 'ab')
    """
    bare = _DIRECTING.sub("", name)
    return bare if all(bidirectional(letter) not in ("R", "AL") for letter in bare) else ISOLATE + bare + POP_ISOLATE


def one_line(text: str) -> str:
    """Text from data, models or libraries where a line break would end a comment or a table's row.

    >>> one_line("a\\nb\\u2028 c\\x00")
    'a b c'
    """
    return " ".join(
        "".join(letter if letter.isprintable() or letter in (ISOLATE, POP_ISOLATE) else " " for letter in text).split()
    )
