"""What records show of themselves in a notebook: the tables of the terminal, every column of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rankwise.records import (
    AdapterSpectrum,
    MemoryEstimate,
    ModelEstimate,
    RankComparison,
    RankProbe,
    Recommendation,
    ResizedAdapter,
)
from rankwise.report.estimate import memory_sheet, methods_sheet, rank_sheet
from rankwise.report.html import html_of
from rankwise.report.markdown import markdown_of
from rankwise.report.probe import probe_sheet
from rankwise.report.recommendation import recommendation_sheet
from rankwise.report.sheet import Sheet
from rankwise.report.spectrum import resized_sheets, spectrum_sheet
from rankwise.report.tables import comparison_sheet
from rankwise.report.text import isolated


def html(record: object) -> str:
    return html_of(_SHEETS[type(record)](record))


def markdown(record: object) -> str:
    return markdown_of(_SHEETS[type(record)](record))


def _of_comparison(comparison: RankComparison) -> list[Sheet]:
    answer = recommendation_sheet(comparison.recommendation)
    notes = [f"note: {isolated(note)}" for note in comparison.notes]
    notes += [f"note: over {one.base}: {isolated(note)}" for one in comparison.over for note in one.notes]
    return [*map(comparison_sheet, (comparison, *comparison.over)), replace(answer, below=notes)]


def _of_model(estimate: ModelEstimate) -> list[Sheet]:
    return [rank_sheet(estimate), *([methods_sheet(estimate)] if estimate.methods else [])]


_SHEETS: dict[type, Callable[[Any], Sequence[Sheet]]] = {
    RankComparison: _of_comparison,
    Recommendation: lambda recommendation: [recommendation_sheet(recommendation)],
    ModelEstimate: _of_model,
    MemoryEstimate: lambda memory: [memory_sheet(memory)],
    RankProbe: lambda probe: [probe_sheet(probe)],
    AdapterSpectrum: lambda spectrum: [spectrum_sheet(spectrum)],
    ResizedAdapter: resized_sheets,
}
