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
    yield f"**{escaped(sheet.title)}**"
    heads = [heading.text for heading in sheet.headings]
    rule = "|".join(["", *(_RULES[heading.justify] for heading in sheet.headings), ""])
    yield "\n".join([_row(heads), rule, *map(_row, sheet.rows)])
    yield from map(escaped, sheet.below)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line: no table cell, link, emphasis or HTML.

    >>> escaped("a|b <i>*c*\n# [d](e)")
    'a\\|b &lt;i&gt;\\*c\\* \\# \\[d\\](e)'
    """
    return re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", escape(" ".join(text.split()), quote=False))
