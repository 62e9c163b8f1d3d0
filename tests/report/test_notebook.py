"""What notebooks show of records: the text of the terminal's tables, whatever characters are in the names."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rankwise.records import ModelEstimate, RankComparison
from rankwise.records.shown import Shown
from rankwise.report.html import html_of
from rankwise.report.markdown import markdown_of
from rankwise.report.sheet import FACTS, Heading, Sheet
from rankwise.report.tables import comparison_sheet
from rankwise.report.text import isolated
from tests.report.samples import COMPARISON, RICH
from tests.report.test_estimate import ESTIMATE, WITHOUT_GPU

HOSTILE = """<script>alert("x")</script> & 'y' | `code` *a* _b_ [l](http://e) $m$ ~~s~~ \\| ![i](j) &lt; # h"""
HEBREW = "משימה"
MEMORY = ESTIMATE.ranks[0].cost.memory
SHOWN = {"comparison": RICH, "recommendation": RICH.recommendation, "model": ESTIMATE, "memory": MEMORY}


class Page(HTMLParser):
    """Reads a fragment: every tag with its attributes, the tables as rows of cells, the paragraphs, the captions."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, list[str]] = {"caption": [], "p": []}
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = [tag for tag in self.open if tag not in ("bdi", "strong")]
        if inside and inside[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif inside and inside[-1] in self.texts:
            self.texts[inside[-1]][-1] += data


def of_markdown(markdown: str) -> str:
    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", SHOWN)
def test_markdown_and_html_say_the_same(name: str) -> None:
    html, markdown = Page(SHOWN[name]._repr_html_()), Page(of_markdown(SHOWN[name]._repr_markdown_()))
    cells = [[[plain(cell) for cell in row] for row in table] for table in html.tables]
    # Markdown has no table without a head.
    assert [[row for row in table if any(row)] for table in markdown.tables] == cells
    assert sorted(markdown.texts["p"]) == sorted(html.texts["caption"] + html.texts["p"])


def test_a_comparison_shows_every_column_of_the_terminals_tables_its_answer_and_its_notes() -> None:
    page = Page(RICH._repr_html_())
    assert page.texts["caption"] == ["docmatch on embedded", "docmatch on embedded in nf4", "Recommendation"]
    first, second, answer = page.tables
    sheet = comparison_sheet(RICH)
    assert first == [[heading.text for heading in sheet.headings], *sheet.rows]
    assert [row[0] for row in second[1:]] == ["0", "4", "16", "256"]
    assert answer[0][:1] == ["answer"]
    assert answer[0][1].startswith("unresolved; until more is known: rank 4, alpha 8")
    notes = [*(f"note: {n}" for n in RICH.notes), *(f"note: over nf4: {n}" for n in RICH.over[0].notes)]
    assert page.texts["p"] == [*sheet.below, *comparison_sheet(RICH.over[0]).below, *notes]


def test_a_model_shows_its_ranks_and_what_fits_and_a_step_its_parts() -> None:
    ranks, methods = Page(ESTIMATE._repr_html_()).tables
    assert ranks[1] == [
        *("4", "1,146,880", "0.0357", "9.18 MB", "21.9 GB (21.5–23.7)"),
        *("0.1 %", "4.6 MB", "2,801×", "307.2×", "yes", "12"),
    ]
    assert [row[0] for row in methods[1:]] == ["full fine-tuning", "LoRA, rank 4", "QLoRA, rank 4"]
    assert len(Page(WITHOUT_GPU._repr_html_()).tables) == 1
    (parts,) = Page(MEMORY._repr_html_()).tables
    assert [row[0] for row in parts[1:]] == [
        *("base weights", "adapter weights", "gradients", "optimizer states", "activations", "overhead"),
        *("peak (from–to)", "reserved by the allocator"),
    ]
    assert parts[-2][1] == ranks[1][4]


@pytest.mark.parametrize("name", SHOWN)
def test_tables_can_be_read_by_ear_and_in_the_dark(name: str) -> None:
    html = SHOWN[name]._repr_html_()
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag != "th" or attributes["scope"] in ("row", "col")
        assert set(attributes) <= {"scope", "style"}
    assert all(text for text in page.texts["caption"])
    assert len(page.texts["caption"]) == len(page.tables)
    bodies = "".join(re.findall("<tbody>.*?</tbody>", html, re.DOTALL))
    assert bodies.count('<tr><th scope="row"') == bodies.count("<tr>") > 0
    assert not re.search(r"colou?r:|background|<style|<link|class=|https?:", html)


def hostile(name: str) -> list[Shown]:
    """Records with this name wherever a name may be."""
    comparison = dataclasses.replace(
        COMPARISON,
        task=name,
        model=name,
        notes=(name,),
        recommendation=dataclasses.replace(COMPARISON.recommendation, target_modules=(name, "b")),
    )
    estimate: ModelEstimate = dataclasses.replace(ESTIMATE, model=name, target_modules=name, notes=(name,))
    return [comparison, comparison.recommendation, estimate, dataclasses.replace(MEMORY, peak_at=name)]


@pytest.mark.parametrize("record", hostile(HOSTILE), ids=lambda record: type(record).__name__)
def test_names_are_text_and_never_markup(record: Shown) -> None:
    for html in (record._repr_html_(), of_markdown(record._repr_markdown_())):
        page = Page(html)
        assert {tag for tag, _ in page.tags} <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p", "strong"}
        cells = [cell for table in page.tables for row in table for cell in row]
        assert any(HOSTILE in text for text in [*page.texts["p"], *page.texts["caption"], *cells])


@pytest.mark.parametrize("record", hostile(HEBREW), ids=lambda record: type(record).__name__)
def test_names_from_right_to_left_are_isolated(record: Shown) -> None:
    html, markdown = record._repr_html_(), record._repr_markdown_()
    for text, pattern in ((html, "<bdi>[^<]*</bdi>"), (markdown, "\u2068[^\u2069]*\u2069")):
        assert text.count(HEBREW) == sum(HEBREW in one for one in re.findall(pattern, text)) > 0


def test_a_name_cannot_turn_the_text_around_it() -> None:
    assert isolated(f"\u202e{HEBREW}\u2069 b") == f"\u2068{HEBREW} b\u2069"
    assert isolated("a\u202eb") == "ab"


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf")), min_size=1).map(plain).filter(bool)


@given(TEXT, TEXT, TEXT)
def test_any_text_comes_through(title: str, cell: str, below: str) -> None:
    sheet = Sheet(title, [Heading("a\nb"), Heading(cell, "left")], [[cell, title]], ["note: " + below])
    html, markdown = Page(html_of([sheet])), Page(of_markdown(markdown_of([sheet])))
    expected = [["a b", cell], [cell, title]]
    assert [[plain(text) for text in row] for row in html.tables[0]] == expected
    assert markdown.tables[0] == expected
    assert [*html.texts["caption"], *html.texts["p"]] == [title, "note: " + below]
    assert markdown.texts["p"] == [title, "note: " + below]


def test_facts_need_no_heads() -> None:
    assert "<thead>" not in html_of([Sheet("t", FACTS, [["a", "b"]])])


def test_a_comparison_that_is_read_back_shows_the_same() -> None:
    assert RankComparison.from_dict(COMPARISON.to_dict())._repr_html_() == COMPARISON._repr_html_()
