"""The page in a real browser: Debian's Chromium, headless, from disk. Skipped where there is none."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwise.report.page import comparison_page
from tests.report.samples import RICH, experiment, trials_of
from tests.report.test_page import HOSTILE

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
DRAWN = "document.querySelectorAll('.plot').length === document.querySelectorAll('.plot[data-drawn]').length"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

ROWS = tuple(
    dataclasses.replace(experiment(rank, accuracy), simultaneous_low=0.3, simultaneous_high=0.5, forgetting=0.1)
    for rank, accuracy in ((4, 0.75), (8, 0.81), (16, 0.84), (64, 0.85))
)
COMPARISON = dataclasses.replace(RICH, experiments=ROWS, model=HOSTILE, notes=(HOSTILE,))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    html = comparison_page(
        COMPARISON,
        trials_of(COMPARISON),
        {"config": {"train": HOSTILE}},
        base_bytes=90_000_000,
        command=f"rankwise compare --train '{HOSTILE}'",
    )
    path = tmp_path_factory.mktemp("<b>page & 'name'") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


class Opened:
    """A page that has drawn its plots, what its console said and what it asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_context(**options).new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_function(DRAWN)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_plot_is_drawn_without_a_word_or_a_request(scheme: str, browser: Any, file: Path) -> None:
    opened = Opened(browser, file, color_scheme=scheme)
    assert opened.said == []
    assert opened.asked == [file.as_uri()]
    drawn = opened.page.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => [p.dataset.chart, p.querySelectorAll('svg path').length])"
    )
    assert [name for name, _ in drawn] == ["quality", "difference", "cost", "curves", "rates", "memory", "forgetting"]
    assert all(paths > 3 for _, paths in drawn)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    opened.page.screenshot(path=SCREENSHOTS / f"report-{scheme}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(scheme: str, browser: Any, file: Path) -> None:
    # axe is a script that is put into the page, which the page's own policy forbids.
    opened = Opened(browser, file, color_scheme=scheme, bypass_csp=True)
    opened.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    found = axe.Axe().run(opened.page)
    assert found.violations_count == 0, found.generate_report()


def test_a_mark_that_is_pointed_at_tells_its_figures(browser: Any, file: Path) -> None:
    page = Opened(browser, file).page
    for chart in ("quality", "difference", "cost", "rates", "memory"):
        mark = page.locator(f"#{chart} [role=graphics-symbol]").first
        mark.dispatch_event("mouseover")
        told = page.locator(f"#{chart} .readout").inner_text()
        assert told == mark.get_attribute("aria-label")
        assert told


def test_arrow_keys_walk_through_the_values_of_a_plot(browser: Any, file: Path) -> None:
    page = Opened(browser, file).page
    page.locator("#rates [role=graphics-symbol][tabindex='0']").focus()
    readout = page.locator("#rates .readout")
    first = readout.inner_text()
    assert first.startswith("r=4, learning rate 0.0001: validation NLL")
    page.keyboard.press("ArrowRight")
    second = readout.inner_text()
    assert second != first
    assert second.startswith("r=")
    page.keyboard.press("ArrowLeft")
    assert readout.inner_text() == first
    # One stop a plot: Tab leaves it.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.plot')?.dataset.chart") != "rates"


def test_the_configuration_is_copied(browser: Any, file: Path) -> None:
    page = Opened(browser, file, permissions=["clipboard-read", "clipboard-write"]).page
    page.get_by_role("button", name="Copy the configuration").click()
    page.wait_for_function(
        "document.querySelector('button[data-copies=settings]').textContent !== 'Copy the configuration'"
    )
    said = page.locator("button[data-copies=settings]").inner_text()
    selected = page.evaluate("getSelection().toString()")
    assert said == "Copied" or "lora_alpha=8" in selected


def test_hostile_text_is_text(browser: Any, file: Path) -> None:
    opened = Opened(browser, file)
    assert opened.said == []  # no alert was called
    assert "<script>alert(1)</script>" in opened.page.locator("header").inner_text()
    assert opened.page.locator("img").count() == 0


def test_a_narrow_window_does_not_scroll_sideways(browser: Any, file: Path) -> None:
    page = Opened(browser, file, viewport={"width": 380, "height": 700}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
