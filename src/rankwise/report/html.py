"""Sheets as HTML that stands in any page: no style sheet, no colours, so that it reads in the dark and in the light."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from rankwise.report.sheet import Heading, Sheet
from rankwise.report.text import ISOLATE, POP_ISOLATE


def html_of(sheets: Sequence[Sheet]) -> str:
    """Tables that a screen reader can name and find its way in, with their lines below them."""
    return "\n".join(line for sheet in sheets for line in _lines(sheet))


def _lines(sheet: Sheet) -> Iterator[str]:
    yield "<table>"
    yield f'<caption style="caption-side: top; text-align: left">{_text(sheet.title)}</caption>'
    if sheet.has_heads:
        # An empty head would be read out as one.
        heads = (_cell('th scope="col"' if heading.text else "td", heading, heading.text) for heading in sheet.headings)
        yield f"<thead><tr>{''.join(heads)}</tr></thead>"
    tags = ['th scope="row"', *["td"] * (len(sheet.headings) - 1)]
    yield "<tbody>"
    for row in sheet.rows:
        yield f"<tr>{''.join(map(_cell, tags, sheet.headings, row))}</tr>"
    yield "</tbody>"
    yield "</table>"
    yield from (f"<p>{_text(line)}</p>" for line in sheet.below)


def _cell(tag: str, heading: Heading, text: str) -> str:
    return f'<{tag} style="text-align: {heading.justify}">{_text(text)}</{tag[:2]}>'


def _text(text: str) -> str:
    return escape(text).replace(ISOLATE, "<bdi>").replace(POP_ISOLATE, "</bdi>")
