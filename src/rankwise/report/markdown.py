"""Sheets as Markdown with GitHub's tables, whatever characters are in the names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from rankwise.report.sheet import Sheet

_RULES = {"left": ":--", "right": "--:"}


def markdown_of(sheets: Sequence[Sheet]) -> str:
    """A title, a table and the lines below it, each a paragraph of its own."""
    return "\n\n".join(block for sheet in sheets for block in _blocks(sheet))


def _blocks(sheet: Sheet) -> Iterator[str]:
    yield f"**{_text(sheet.title)}**"
    heads = [heading.text for heading in sheet.headings]
    rule = "|".join(["", *(_RULES[heading.justify] for heading in sheet.headings), ""])
    yield "\n".join([_row(heads), rule, *map(_row, sheet.rows)])
    yield from map(_text, sheet.below)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_text, cells))} |"


def _text(text: str) -> str:
    r"""On one line and as it is read, not as markup.

    >>> _text("a|b <i>`c`</i>")
    'a\\|b &lt;i&gt;\\`c\\`&lt;/i&gt;'
    """
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", escape(" ".join(text.split()), quote=False))
