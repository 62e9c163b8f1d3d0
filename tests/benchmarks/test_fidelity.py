"""What the program says of its cheap ways is what was measured."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks.fidelity.page import PAGE, RESULTS, page, sentence
from rankwise import ComparisonConfig, fidelity
from rankwise.cli.probe import probe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("way", "said"), [("ladder", fidelity.LADDER), ("probe", fidelity.PROBE)])
def test_the_program_quotes_what_was_measured(way: str, said: str) -> None:
    assert said == sentence(way, json.loads((ROOT / RESULTS).read_text()))


def test_the_help_texts_quote_it() -> None:
    assert fidelity.PROBE in " ".join((probe.__doc__ or "").split())
    (strategy,) = [option for option in fields(ComparisonConfig) if option.name == "strategy"]
    assert fidelity.LADDER in strategy.metadata["help"]


def test_the_page_shows_the_record() -> None:
    shown = (ROOT / PAGE).read_text().splitlines()
    for line in page(json.loads((ROOT / RESULTS).read_text())):
        assert line in shown
