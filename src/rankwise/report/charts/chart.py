"""What every plot is made of. Source of the specifications: Vega-Lite 6, https://vega.github.io/vega-lite/docs/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rankwise.records import RankExperiment
from rankwise.report.sheet import Heading, Sheet
from rankwise.report.text import DASH

Spec: TypeAlias = dict[str, Any]
Point: TypeAlias = dict[str, Any]

# Each stands out from a white and from a black page.
BLUE, ORANGE, GREY, GREEN = "#2f7fd0", "#d0661b", "#848a93", "#2b9470"
LABEL: Spec = {"field": "label"}


@dataclass(frozen=True)
class Chart:
    """A plot, what it says in words, and the table behind it.

    Each mark carries a `label`, the sentence that is shown where it is pointed at and read out where it has the focus.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    sheet: Sheet


def specification(**parts: Any) -> Spec:
    width = {"width": "container", "height": 260, "autosize": {"type": "fit-x", "contains": "padding"}}
    size = {} if "concat" in parts else width
    return {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", **size, **parts}


def rank_axis(rows: Sequence[RankExperiment]) -> Spec:
    ranks = [row.rank for row in rows]
    return {
        "field": "rank",
        "type": "quantitative",
        "title": "rank",
        "scale": {"type": "log", "base": 2, "domain": [min(ranks) / 1.3, max(ranks) * 1.3], "nice": False},
        "axis": {"values": ranks, "format": "d", "grid": False},
    }


def y_axis(field: str, title: str, padding: int = 12) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False, "padding": padding}}


def limits(low: float | None, high: float | None) -> Spec:
    """A point's limits where it has any; of a missing one no bar is drawn."""
    return {} if low is None or high is None else {"low": low, "high": high}


def rule_with_name(values: Sequence[Point], field: str, axis: str) -> Spec:
    """Dashed lines across the plot, each with its name at the left."""
    return {
        "data": {"values": list(values)},
        "encoding": {"y": y_axis(field, axis), "description": LABEL},
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [3, 3], "color": "currentColor"}},
            {
                "mark": {"type": "text", "align": "left", "x": 4, "dy": -6, "color": "currentColor", "aria": False},
                "encoding": {"text": {"field": "name"}},
            },
        ],
    }


def unit_of_memory(most: int) -> tuple[str, float]:
    """A unit for an axis that ends at so many bytes, and the bytes in it."""
    return ("GB", 1e9) if most >= 1e9 else ("MB", 1e6)


def sheet_of(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Sheet:
    return Sheet(title, [Heading(heading) for heading in headings], rows)


def signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.4f}".replace("-", "−")
