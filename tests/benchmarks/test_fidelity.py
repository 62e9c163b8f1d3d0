"""What the program says of its cheap ways is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.fidelity.page import PAGE, RESULTS, page, sentence
from rankwise import fidelity

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("way", "said"), [("ladder", fidelity.LADDER), ("probe", fidelity.PROBE)])
def test_the_program_quotes_what_was_measured(way: str, said: str) -> None:
    assert said == sentence(way, json.loads((ROOT / RESULTS).read_text()))


def test_the_page_shows_the_record() -> None:
    shown = (ROOT / PAGE).read_text().splitlines()
    for line in page(json.loads((ROOT / RESULTS).read_text())):
        assert line in shown
