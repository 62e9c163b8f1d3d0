"""What a rank takes of the memory, and what it makes the model forget."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.records import RankExperiment
from rankwise.report.charts.chart import (
    BLUE,
    GREY,
    LABEL,
    ORANGE,
    Chart,
    Point,
    limits,
    rank_axis,
    sheet_of,
    signed,
    specification,
    unit_of_memory,
    y_axis,
)
from rankwise.report.text import bytes_text, share_text

_BYTES_A_PARAMETER = 16  # the weight, its gradient and AdamW's two moments, in float32


def memory(rows: Sequence[RankExperiment], base_bytes: int) -> Chart:
    parts = ("base weights", "the rank's own", "activations and the rest")
    unit, bytes_in_it = unit_of_memory(max(row.peak_memory_bytes or 0 for row in rows))
    points: list[Point] = []
    table = []
    for row in rows:
        if row.peak_memory_bytes is None:
            continue
        own = _BYTES_A_PARAMETER * row.trainable_params
        sizes = (base_bytes, own, max(0, row.peak_memory_bytes - base_bytes - own))
        table.append((str(row.rank), *map(bytes_text, sizes), bytes_text(sum(sizes)), share_text(own / sum(sizes))))
        points += [
            {
                "rank": str(row.rank),
                "part": part,
                "order": order,
                "size": size / bytes_in_it,
                "label": f"r={row.rank}, {part}: {bytes_text(size)}, {share_text(size / sum(sizes))} of the peak",
            }
            for order, (part, size) in enumerate(zip(parts, sizes, strict=True))
        ]
    return Chart(
        "memory",
        "Memory by rank",
        "The measured peak of a step of this rank alone. The rank's own are 16 bytes a trainable parameter: weight, "
        "gradient and AdamW's two moments.",
        specification(
            data={"values": points},
            mark={"type": "bar", "stroke": "currentColor", "strokeWidth": 0.5},
            encoding={
                "x": {
                    "field": "rank",
                    "type": "ordinal",
                    "sort": [str(row.rank) for row in rows],
                    "axis": {"labelAngle": 0, "title": "rank"},
                },
                "y": {"field": "size", "type": "quantitative", "title": f"peak memory, {unit}", "stack": "zero"},
                "color": {
                    "field": "part",
                    "scale": {"domain": list(parts), "range": [GREY, ORANGE, BLUE]},
                    "legend": {"title": None, "orient": "top"},
                },
                "order": {"field": "order"},
                "description": LABEL,
            },
        ),
        sheet_of("Memory by rank", ("rank", *parts, "peak", "the rank's share"), table),
    )


def forgetting(rows: Sequence[RankExperiment]) -> Chart:
    points = [
        {
            "rank": row.rank,
            "value": row.forgetting,
            **limits(row.forgetting_low, row.forgetting_high),
            "label": f"r={row.rank}: {signed(row.forgetting)} nats a token",
        }
        for row in rows
        if row.forgetting is not None
    ]
    axis = "rise of the retained texts' NLL, nats"
    table = [(str(point["rank"]), signed(point["value"])) for point in points]
    return Chart(
        "forgetting",
        "What is forgotten",
        "By how much the NLL of the retained texts rises over rank 0, with 95 % intervals over seeds and texts.",
        specification(
            data={"values": points},
            encoding={"x": rank_axis(rows), "description": LABEL},
            layer=[
                {
                    "mark": {"type": "rule", "color": ORANGE, "strokeWidth": 2},
                    "encoding": {"y": y_axis("low", axis), "y2": {"field": "high"}},
                },
                {
                    "mark": {"type": "point", "color": ORANGE, "filled": True, "size": 90, "opacity": 1},
                    "encoding": {"y": y_axis("value", axis)},
                },
            ],
        ),
        sheet_of("What is forgotten", ("rank", axis), table),
    )
