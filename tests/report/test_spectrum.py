from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rankwise.records import AdapterSpectrum, GroupSpectrum
from rankwise.report.spectrum import spectrum_table
from tests.report.test_tables import rendered

NAMES = ("attention.output.dense", "intermediate.dense", "bert.pooler.dense")


def group(name: str) -> GroupSpectrum:
    return GroupSpectrum(name, 12, 16, 16, 11.25, 15.5, (0.0, 0.5, 1.0), 13, 14, 15, 1.0, (1, 2, 4))


SPECTRUM = AdapterSpectrum(
    adapter=Path("adapter"),
    rank=16,
    alpha=16.0,
    use_rslora=False,
    scaling=1.0,
    default_alpha_trap=False,
    overall=group("all"),
    kinds=tuple(map(group, NAMES)),
    layers=(),
    modules=(),
)


@pytest.mark.parametrize("width", [75, 80, 100, 200])
def test_names_of_projections_are_in_one_piece(width: int) -> None:
    words = " ".join(rendered(spectrum_table(SPECTRUM), width)).split()
    assert {*NAMES, "all"} <= set(words)


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (100, "all 12 16 11.2 15.5 13 14 15 100.0 % 1–4 (3 of 12)"),
        (82, "all 12 16 11.2 15.5 13 14 15 100.0 %"),
        (75, "all 12 16 11.2 15.5 14 15 100.0 %"),
    ],
)
def test_a_narrow_terminal_shows_fewer_columns(width: int, row: str) -> None:
    lines = rendered(spectrum_table(SPECTRUM), width)
    assert row in [" ".join(line.split()) for line in lines]
    assert any(line.startswith("Gap after:") for line in lines) == row.endswith("of 12)")


def test_where_no_width_would_do_nothing_is_cut_off() -> None:
    long = dataclasses.replace(SPECTRUM, kinds=(group("q" * 120),))
    assert "".join(rendered(spectrum_table(long), 60)).count("q") >= 120
