"""Quality by rank, what a smaller rank loses, and quality by what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankwise.records import Baseline, FullFineTuning, RankComparison, RankExperiment
from rankwise.report.charts.chart import (
    BLUE,
    GREEN,
    GREY,
    LABEL,
    ORANGE,
    Chart,
    Point,
    Spec,
    limits,
    rank_axis,
    rule_with_name,
    sheet_of,
    signed,
    specification,
    unit_of_memory,
    y_axis,
)
from rankwise.report.text import DASH, bytes_text, nll_text, seconds_text, share_text


@dataclass(frozen=True)
class _Quality:
    """The metric that decides, as an axis and its figures."""

    by_nll: bool

    @property
    def name(self) -> str:
        return "NLL, nats" if self.by_nll else "accuracy"

    def value(self, of: RankExperiment | Baseline | FullFineTuning) -> float:
        return of.nll if self.by_nll else of.accuracy

    def text(self, value: float) -> str:
        return nll_text(value) if self.by_nll else share_text(value)


def quality(comparison: RankComparison, rows: Sequence[RankExperiment], reference: RankExperiment) -> Chart:
    """`reference` is the row of the rank that the others are measured against."""
    metric = _Quality(comparison.recommendation.metric == "nll")
    others: list[Point] = [{"value": metric.value(comparison.baseline), "name": "rank 0"}]
    if comparison.full is not None and math.isfinite(metric.value(comparison.full)):
        others.append({"value": metric.value(comparison.full), "name": "full fine-tuning"})
    for other in others:
        other["label"] = f"{other['name']}: {metric.name} {metric.text(other['value'])}"
    margin, name = comparison.recommendation.margin, metric.name
    layers = [rule_with_name(others, "value", name), _ranks_with_limits(metric, rows)]
    band = ""
    if margin is not None and math.isfinite(metric.value(reference)):
        layers.insert(0, _margin_band(metric, reference, margin))
        band = f" The green band is the margin around the reference, r={reference.rank}."
    table = [
        (str(row.rank), *(DASH if each is None else metric.text(each) for each in (metric.value(row), low, high)))
        for row in rows
        for low, high in [(row.simultaneous_low, row.simultaneous_high)]
    ]
    table += [(str(other["name"]), metric.text(other["value"]), DASH, DASH) for other in others]
    return Chart(
        "quality",
        "Quality by rank",
        f"{name[0].upper()}{name[1:]} on the test split{', less is better' if metric.by_nll else ''}. Bars hold for "
        f"all ranks at once with 95 %.{band}",
        specification(layer=layers),
        sheet_of("Quality by rank", ("rank", name, "low", "high"), table),
    )


def _margin_band(metric: _Quality, reference: RankExperiment, margin: float) -> Spec:
    at = metric.value(reference)
    worst = at + margin if metric.by_nll else at - margin
    good = f"{metric.text(worst)} or {'less' if metric.by_nll else 'more'}"
    area = {"from": at, "to": worst, "label": f"the margin: as good as r={reference.rank} is {good}"}
    return {
        "data": {"values": [area]},
        "mark": {"type": "rect", "color": GREEN, "opacity": 0.18},
        "encoding": {"y": y_axis("from", metric.name), "y2": {"field": "to"}, "description": LABEL},
    }


def _ranks_with_limits(metric: _Quality, rows: Sequence[RankExperiment]) -> Spec:
    name = metric.name
    points = [
        {
            "rank": row.rank,
            "value": metric.value(row),
            **limits(low, high),
            "label": f"r={row.rank}: {name} {metric.text(metric.value(row))}"
            + (
                ""
                if low is None or high is None
                else f", {metric.text(low)} to {metric.text(high)} with all ranks at once"
            ),
        }
        for row in rows
        if math.isfinite(metric.value(row))
        for low, high in [(row.simultaneous_low, row.simultaneous_high)]
    ]
    return {
        "data": {"values": points},
        "encoding": {"x": rank_axis(rows), "description": LABEL},
        "layer": [
            {
                "mark": {"type": "rule", "color": BLUE, "strokeWidth": 2},
                "encoding": {"y": y_axis("low", name), "y2": {"field": "high"}},
            },
            {"mark": {"type": "line", "color": BLUE, "opacity": 0.5}, "encoding": {"y": y_axis("value", name)}},
            {
                "mark": {"type": "point", "color": BLUE, "filled": True, "size": 90, "opacity": 1},
                "encoding": {"y": y_axis("value", name)},
            },
        ],
    }


def difference(comparison: RankComparison, rows: Sequence[RankExperiment], reference: RankExperiment) -> Chart:
    """`reference` is the row of the rank that the others are measured against."""
    to, margin = f"r={reference.rank}", comparison.recommendation.margin
    unit = "nats" if comparison.recommendation.metric == "nll" else "points of accuracy"
    scale = 1 if unit == "nats" else 100
    points: list[Point] = [
        {
            "rank": row.rank,
            "value": scale * row.difference,
            "low": scale * low,
            "high": scale * high,
            "verdict": row.verdict,
            "label": f"r={row.rank}, {row.verdict}: {signed(scale * row.difference)} {unit} to {to}, "
            f"{signed(scale * low)} to {signed(scale * high)}",
        }
        for row in rows
        for low, high in [(row.difference_low, row.difference_high)]
        if low is not None and high is not None and row is not reference
    ]
    lines = [{"at": 0.0, "name": to, "label": f"the reference, {to}"}]
    if margin is not None:
        lost = -scale * margin
        lines.append({"at": lost, "name": "the margin", "label": f"the margin, {signed(lost)} {unit}"})
    axis = f"difference to {to}, {unit}"
    verdicts = ["sufficient", "unresolved", "underfits"]
    table = [
        (str(point["rank"]), *(signed(point[of]) for of in ("value", "low", "high")), str(point["verdict"]))
        for point in points
    ]
    return Chart(
        "difference",
        "What a smaller rank loses",
        f"The difference to {to} in {unit}; above 0 the smaller rank is better. Each end of a bar alone is 95 % sure. "
        "A rank is sufficient where its bar and those of all larger ones lie wholly above the margin; it underfits "
        f"where its bar and those of all smaller ones lie wholly below; neither where {to} is not shown to gain "
        "anything. A margin that is a share of the gain is uncertain itself: verdicts count that, bars do not.",
        specification(
            layer=[
                rule_with_name(lines, "at", axis),
                {
                    "data": {"values": points},
                    "encoding": {
                        "x": rank_axis(rows),
                        "color": {
                            "field": "verdict",
                            "scale": {"domain": verdicts, "range": [GREEN, GREY, ORANGE]},
                            "legend": {"title": None, "orient": "top"},
                        },
                        "description": LABEL,
                    },
                    "layer": [
                        {
                            "mark": {"type": "rule", "strokeWidth": 2},
                            "encoding": {"y": y_axis("low", axis), "y2": {"field": "high"}},
                        },
                        {
                            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
                            "encoding": {
                                "y": y_axis("value", axis),
                                "shape": {
                                    "field": "verdict",
                                    "scale": {"domain": verdicts, "range": ["circle", "diamond", "triangle-down"]},
                                },
                            },
                        },
                    ],
                },
            ]
        ),
        sheet_of("What a smaller rank loses", ("rank", f"difference, {unit}", "low", "high", "verdict"), table),
    )


def cost(comparison: RankComparison, rows: Sequence[RankExperiment]) -> Chart:
    metric = _Quality(comparison.recommendation.metric == "nll")
    peaks = [row.peak_memory_bytes for row in rows if row.peak_memory_bytes is not None]
    unit, size = unit_of_memory(max(peaks, default=0))
    costs: list[tuple[str, list[float], Callable[[float], str]]] = [
        ("trainable parameters", [float(row.trainable_params) for row in rows], "{:,.0f}".format),
        ("training time, s", [row.training_time_seconds for row in rows], seconds_text),
        (
            f"peak memory, {unit}",
            [math.nan if row.peak_memory_bytes is None else row.peak_memory_bytes / size for row in rows],
            lambda cost: bytes_text(round(cost * size)),
        ),
    ]
    panels = []
    for title, values, as_text in costs:
        points = [
            {
                "cost": cost,
                "value": metric.value(row),
                "name": f"r={row.rank}",
                "above": 1 if place % 2 else -1,
                "label": f"r={row.rank}: {title.split(',')[0]} {as_text(cost)}, {metric.name} "
                f"{metric.text(metric.value(row))}",
            }
            for place, (row, cost) in enumerate(zip(rows, values, strict=True))
            if math.isfinite(cost) and math.isfinite(row.nll)
        ]
        if points:
            panels.append(_panel(metric, title, points))
    table = [
        (
            str(row.rank),
            metric.text(metric.value(row)),
            f"{row.trainable_params:,}",
            seconds_text(row.training_time_seconds),
            bytes_text(row.peak_memory_bytes),
        )
        for row in rows
    ]
    return Chart(
        "cost",
        "Quality by cost",
        "What training a rank alone takes: quality is worth its cost only where a curve still rises.",
        specification(concat=panels, columns=3),
        sheet_of(
            "Quality by cost", ("rank", metric.name, "trainable parameters", "training time", "peak memory"), table
        ),
    )


def _panel(metric: _Quality, title: str, points: Sequence[Point]) -> Spec:
    """Quality by one kind of cost."""
    return {
        "data": {"values": list(points)},
        "width": 200,
        "height": 200,
        "encoding": {
            "x": {
                "field": "cost",
                "type": "quantitative",
                "title": title,
                "scale": {"zero": False, "padding": 24},
                "axis": {"tickCount": 3, "format": "~s", "grid": False},
            },
            "y": y_axis("value", metric.name, padding=24),
            "description": LABEL,
        },
        "layer": [
            {"mark": {"type": "line", "color": GREY, "opacity": 0.5}},
            {"mark": {"type": "point", "color": BLUE, "filled": True, "size": 80, "opacity": 1}},
            {
                "mark": {"type": "text", "dy": {"expr": "14 * datum.above"}, "color": "currentColor", "aria": False},
                "encoding": {"text": {"field": "name"}},
            },
        ],
    }
