from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rankwise.report.markdown import comparison_markdown, escaped
from rankwise.report.tables import comparison_cells
from rankwise.report.text import one_line
from tests.report.samples import COMPARISON, RICH


def cells(markdown: str) -> list[list[str]]:
    """The cells of the first table, as a reader sees them."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append("".join(child.content for child in token.children or []))
        elif token.type == "table_close":
            return rows
    return rows


def test_the_table_has_the_terminals_cells() -> None:
    for comparison in (COMPARISON, RICH):
        shown = cells(comparison_markdown(comparison))
        assert shown == comparison_cells(comparison)
        assert {len(row) for row in shown} == {len(shown[0])}
    assert [row[0] for row in shown] == ["rank", "0", "4", "16", "64", "full"]


@given(st.text())
def test_escaped_text_is_read_as_it_was(text: str) -> None:
    shown = cells(f"| a |\n| --- |\n| x{escaped(text)}x |")
    assert shown == [["a"], [f"x{one_line(text)}x"]]


def test_notes_and_answer_are_items() -> None:
    markdown = comparison_markdown(replace(COMPARISON, notes=("one\n- two",)))
    assert "- note: one - two" in markdown.splitlines()
    assert "- holds for: 200 steps of 8 of the 2,000 training examples" in markdown.splitlines()
