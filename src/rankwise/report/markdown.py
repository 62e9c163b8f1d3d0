"""A comparison as Markdown, for a model card. Whatever comes from data or models is escaped."""

from __future__ import annotations

import html
import re

from rankwise.records import RankComparison
from rankwise.report.recommendation import recommendation_lines
from rankwise.report.tables import comparison_caption, comparison_cells
from rankwise.report.text import one_line


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line: no table cell, link, emphasis or HTML.

    >>> escaped("a|b <i>*c*\n# [d](e)")
    'a\\|b &lt;i&gt;\\*c\\* \\# \\[d\\](e)'
    """
    return re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", html.escape(one_line(text), quote=False))


def comparison_markdown(comparison: RankComparison) -> str:
    """The table, what its figures are, the notes, and the answer with what it stands on."""
    header, *rows = comparison_cells(comparison)
    table = [_row(header), _row(["---"] * len(header), plain=True), *(_row(row) for row in rows)]
    caption = [escaped(line) for line in comparison_caption(comparison, wide=True).splitlines()]
    notes = [f"- note: {escaped(note)}" for note in comparison.notes]
    answer = [f"- {name}: {escaped(text)}" for name, text in recommendation_lines(comparison.recommendation)]
    return "\n\n".join("\n".join(block) for block in (table, caption, answer, notes) if block)


def _row(cells: list[str], *, plain: bool = False) -> str:
    return f"| {' | '.join(cells if plain else map(escaped, cells))} |"
