"""The page as text: what it says, what it must not say, how large it becomes. A browser opens it in tests/browser."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from rankwise.records import RankComparison, TrialResult
from rankwise.report.charts import charts
from rankwise.report.page import comparison_page
from tests.report.samples import COMPARISON, RICH, experiment, trials_of

HOSTILE = "</script><script>alert(1)</script>\"'&\u202e<img src=x onerror=alert(2)>"


def page(comparison: RankComparison, trials: list[TrialResult] | None = None, **changed: Any) -> str:
    options = {"setup": {"steps": 40}, "base_bytes": 90_000_000, "command": "rankwise compare --task docmatch"}
    return comparison_page(comparison, trials_of(comparison) if trials is None else trials, **(options | changed))


class Read(HTMLParser):
    """The texts of a page by element, without scripts and styles, and its specifications."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.specifications: dict[str, Any] = {}
        self._inside: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "img"):
            self._inside.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, attributes = self._inside[-1] if self._inside else ("", {})
        if attributes.get("id") == "specifications":
            self.specifications = json.loads(data)
        elif tag not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def labels(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["label"]] if "label" in node else []
        return own + [label for value in node.values() for label in labels(value)]
    return [label for value in node for label in labels(value)] if isinstance(node, list) else []


def test_the_answer_and_the_configuration_to_copy_come_first() -> None:
    read = Read(page(COMPARISON))
    assert read.text.index("Rank 4 is enough.") < read.text.index("lora_alpha=8,") < read.text.index("Every rank")
    assert COMPARISON.recommendation.reason in read.text
    settings = next(text for text in read.texts if "LoraConfig(" in text)
    named: dict[str, Any] = {}
    exec(settings, named)
    assert (named["lora"].r, named["lora"].lora_alpha, named["lora"].use_rslora) == (4, 8, False)
    assert (named["lora"].target_modules, named["learning_rate"]) == ("all-linear", 3e-4)


def test_an_answer_that_is_not_resolved_says_what_would_resolve_it() -> None:
    text = Read(page(RICH)).text
    assert "Rank 4 for now: the data cannot tell yet." in text
    assert "4 seeds in all or 1,200 test examples in all, if the rank in truth loses nothing" in text
    assert "9 seeds in all, if it loses half of the margin" in text
    assert "What would resolve it" not in Read(page(COMPARISON)).text


def test_every_plot_has_a_table_with_the_figures_that_its_marks_tell() -> None:
    read = Read(page(RICH))
    plots = list(charts(RICH, trials_of(RICH), 90_000_000))
    assert [*read.specifications] == [plot.name for plot in plots]
    assert [plot.name for plot in plots] == [
        "quality",
        "difference",
        "cost",
        "curves",
        "rates",
        "memory",
        "forgetting",
    ]
    for plot in plots:
        assert plot.title in read.text
        assert labels(plot.spec)
        for cell in {cell for row in plot.sheet.rows for cell in row}:
            assert cell in read.text
    assert "r=4, base weights: 90 MB" in str(labels(read.specifications["memory"]))
    assert read.text.count("The table behind it") == len(plots)


def test_a_comparison_with_the_least_that_there_may_be() -> None:
    """One rank, one seed, nothing measured: no interval, no margin, no memory."""
    nothing = dict.fromkeys(("accuracy_low", "accuracy_high", "difference_low", "difference_high", "peak_memory_bytes"))
    row = dataclasses.replace(experiment(8, 0.8), seeds=1, verdict="unresolved", **nothing)
    unsure = dataclasses.replace(
        COMPARISON.recommendation, status="unresolved", rank=None, margin=None, metric="accuracy"
    )
    least = dataclasses.replace(COMPARISON, experiments=(row,), recommendation=unsure, notes=())
    read = Read(page(least, [], base_bytes=None))
    assert [*read.specifications] == ["quality", "cost"]
    assert "No rank yet: the data cannot tell." in read.text
    assert "Copy the configuration" not in read.text


def test_text_from_data_models_and_files_is_text() -> None:
    hostile = dataclasses.replace(
        RICH,
        model=HOSTILE,
        task=HOSTILE,
        notes=(HOSTILE, HOSTILE),
        recommendation=dataclasses.replace(RICH.recommendation, reason=HOSTILE, target_modules=(HOSTILE,)),
    )
    html = page(hostile, setup={"config": {"train": HOSTILE}}, command=HOSTILE)
    read, plain = Read(html), Read(page(RICH))
    assert read.tags == plain.tags
    assert "<script>alert(1)</script>" in read.text
    assert read.specifications.keys() == plain.specifications.keys()
    assert "\u202e" not in re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL)


def test_specifications_cannot_end_their_script() -> None:
    html = page(dataclasses.replace(RICH, full=None))
    inside = html.split('id="specifications">')[1].split("</script>")[0]
    assert "<" not in inside
    assert json.loads(inside)


def test_nothing_is_asked_of_a_network() -> None:
    html = page(RICH)
    assert "default-src 'none'" in html
    assert not re.search(r"<(?:link|img|iframe)|(?:src|href)=", html.split("<script")[0])


def test_a_large_comparison_stays_small() -> None:
    rows = tuple(
        dataclasses.replace(experiment(rank, 0.8), simultaneous_low=0.3, simultaneous_high=0.5)
        for rank in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)
    )
    large = dataclasses.replace(COMPARISON, experiments=rows)
    html = page(large, trials_of(large, seeds=5, steps=2000))
    assert len(html.encode()) < 3_000_000


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
def test_the_band_is_the_margin_on_the_worse_side_of_the_reference(metric: Any) -> None:
    comparison = dataclasses.replace(
        COMPARISON, recommendation=dataclasses.replace(COMPARISON.recommendation, metric=metric, margin=0.05)
    )
    quality = next(charts(comparison, [], None))
    (band,) = quality.spec["layer"][0]["data"]["values"]
    reference = COMPARISON.experiments[-1]
    if metric == "nll":
        assert (band["from"], band["to"]) == (reference.nll, reference.nll + 0.05)
    else:
        assert (band["from"], band["to"]) == (reference.accuracy, reference.accuracy - 0.05)


def test_full_fine_tuning_that_can_not_be_scored_has_no_mark() -> None:
    assert RICH.full is not None
    shown = Read(page(dataclasses.replace(RICH, full=dataclasses.replace(RICH.full, nll=math.nan, accuracy=math.nan))))
    assert not [label for label in labels(shown.specifications) if "full fine-tuning: " in label and "nan" in label]


def test_where_the_largest_rank_takes_no_part_the_plots_are_against_the_next() -> None:
    *others, largest = COMPARISON.experiments
    lost = dataclasses.replace(
        largest, nll=math.nan, difference=math.nan, difference_low=None, difference_high=None, verdict="unresolved"
    )
    comparison = dataclasses.replace(COMPARISON, experiments=(*others, lost))
    by_name = {chart.name: chart for chart in charts(comparison, [], None)}
    assert "the margin around the reference, r=16" in by_name["quality"].caption
    assert "The difference to r=16" in by_name["difference"].caption
    assert [row[0] for row in by_name["difference"].sheet.rows] == ["4"]


def test_figures_that_no_comparison_ends_with_are_shown_all_the_same() -> None:
    """A damaged file may hold them; `answer` lets no run end so."""
    rows = tuple(dataclasses.replace(row, nll=math.nan) for row in COMPARISON.experiments)
    assert "r=256" in page(dataclasses.replace(COMPARISON, experiments=rows))
