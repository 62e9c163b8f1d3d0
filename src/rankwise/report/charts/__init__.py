"""The plots of a comparison's page: records in, Vega-Lite specifications and the tables behind them out.

Ranks are told apart by place, dash and the text beside a line, never by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rankwise.records import RankComparison, TrialResult
from rankwise.report.charts.chart import Chart
from rankwise.report.charts.quality import cost, difference, quality
from rankwise.report.charts.side_effects import forgetting, memory
from rankwise.report.charts.training import curves, rates

__all__ = ["Chart", "charts"]


def charts(comparison: RankComparison, trials: Sequence[TrialResult], base_bytes: int | None) -> Iterator[Chart]:
    """All plots that the comparison has data for. `trials` are all that were begun; `base_bytes` the base model's."""
    every = comparison.experiments
    # Those of further scalings follow the rows that the recommendation is of.
    rows = [row for row in every if row.use_rslora == every[0].use_rslora]
    # As the verdicts have it: a largest rank whose test loss is not finite takes no part.
    reference = next((row for row in reversed(rows) if math.isfinite(row.nll)), rows[-1])
    yield quality(comparison, rows, reference)
    if any(row.difference_low is not None for row in rows if row is not reference):
        yield difference(comparison, rows, reference)
    yield cost(comparison, rows)
    chosen = {(row.rank, row.use_rslora): row.learning_rate for row in rows}
    if trials:
        yield curves(trials, chosen)
        yield rates(trials, chosen)
    if base_bytes is not None and any(row.peak_memory_bytes is not None for row in rows):
        yield memory(rows, base_bytes)
    if any(row.forgetting is not None for row in rows):
        yield forgetting(rows)
