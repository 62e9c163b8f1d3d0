"""A table as text, before it is known what shows it: a terminal, a web page or Markdown.

The figures are formatted here and nowhere else: each way of showing only lays out and escapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Heading:
    """A column's head, which may have two lines; `justify` keeps the digits below each other."""

    text: str
    justify: Literal["left", "right"] = "right"


FACTS = (Heading("", "left"), Heading("", "left"))  # a name and a text in each row need no heads


@dataclass(frozen=True)
class Sheet:
    """Rows of text under headings, and the lines below that say what the figures are."""

    title: str
    headings: Sequence[Heading]
    rows: Sequence[Sequence[str]]
    below: Sequence[str] = ()

    @property
    def has_heads(self) -> bool:
        return any(heading.text for heading in self.headings)
