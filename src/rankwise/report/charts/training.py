"""How training went: learning curves, and the learning rates that were tried."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import fmean

from rankwise.records import TrialResult
from rankwise.report.charts.chart import LABEL, Chart, Point, Spec, sheet_of, specification, y_axis
from rankwise.report.text import DASH, nll_text

_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (4, 4), (10, 4))
_POINTS_OF_A_CURVE = 100


def curves(trials: Sequence[TrialResult], chosen: Mapping[tuple[int, bool], float]) -> Chart:
    of_rank: dict[int, list[TrialResult]] = {}
    for result in trials:
        trial = result.trial
        if chosen.get((trial.rank, trial.use_rslora)) == trial.learning_rate and result.status == "trained":
            of_rank.setdefault(trial.rank, []).append(result)
    points: list[Point] = []
    for rank, results in sorted(of_rank.items()):
        for step, loss in _smoothed([result.train_nll for result in results]):
            label = f"r={rank}, step {step:,}: train NLL {nll_text(loss)}"
            points.append({"rank": str(rank), "step": step, "loss": loss, "of": "train", "label": label})
        evaluations = [result.evaluations for result in results]
        for at in zip(*evaluations, strict=False):
            step, loss = at[0].step, fmean(evaluation.nll for evaluation in at)
            label = f"r={rank}, step {step:,}: validation NLL {nll_text(loss)}"
            points.append({"rank": str(rank), "step": step, "loss": loss, "of": "validation", "label": label})
    points = [point for point in points if math.isfinite(point["loss"])]
    ranks = [str(rank) for rank in sorted(of_rank)]
    dashes = [_DASHES[index % len(_DASHES)] for index in range(len(ranks))]
    ends = [
        max(curve, key=lambda point: point["step"])
        for rank in ranks
        if (curve := [point for point in points if point["rank"] == rank and point["of"] == "validation"])
    ]
    panels = []
    for of in ("train", "validation"):
        mine = [point for point in points if point["of"] == of]
        encoding = {
            "x": {"field": "step", "type": "quantitative", "axis": {"tickCount": 5, "format": "~s"}},
            "y": y_axis("loss", f"{of} NLL, nats"),
            "color": {
                "field": "rank",
                "sort": ranks,
                "scale": {"scheme": {"name": "viridis", "extent": [0.25, 0.8]}, "domain": ranks},
                "legend": {"title": "rank", "symbolType": "stroke", "symbolStrokeWidth": 2},
            },
            "description": LABEL,
        }
        layers: list[Spec] = [
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {
                    "strokeDash": {"field": "rank", "sort": ranks, "scale": {"domain": ranks, "range": dashes}}
                },
            },
            {"mark": {"type": "point", "filled": True, "size": 45, "opacity": 0 if of == "train" else 1}},
        ]
        if of == "validation":
            layers.append(
                {
                    "data": {"values": ends},
                    "mark": {"type": "text", "align": "left", "dx": 6, "color": "currentColor", "aria": False},
                    "encoding": {"text": {"field": "rank"}, "color": {"value": "currentColor"}},
                }
            )
        panels.append({"data": {"values": mine}, "width": 330, "height": 240, "encoding": encoding, "layer": layers})
    table = [
        (str(point["rank"]), f"{point['step']:,}", nll_text(point["loss"]))
        for point in points
        if point["of"] == "validation"
    ]
    return Chart(
        "curves",
        "Learning curves",
        "At each rank's chosen learning rate, the mean over seeds; the train loss is smoothed. Validation curves that "
        "still fall say that longer training might change the answer.",
        specification(concat=panels, columns=2),
        sheet_of("Learning curves: validation", ("rank", "step", "NLL"), table),
    )


def _smoothed(curves: Sequence[Sequence[float]]) -> Iterator[tuple[int, float]]:
    """Means over curves and over windows of steps, at the last step of each."""
    steps = min(map(len, curves))
    window = max(1, math.ceil(steps / _POINTS_OF_A_CURVE))
    for start in range(0, steps, window):
        stop = min(start + window, steps)
        yield stop, fmean(fmean(curve[start:stop]) for curve in curves)


def rates(trials: Sequence[TrialResult], chosen: Mapping[tuple[int, bool], float]) -> Chart:
    def cell(result: TrialResult) -> tuple[int, float]:
        return result.trial.rank, result.trial.learning_rate

    shown = [result for result in trials if (result.trial.rank, result.trial.use_rslora) in chosen]
    points: list[Point] = []
    for (rank, rate), results in groupby(sorted(shown, key=cell), key=cell):
        members = list(results)
        losses = [result.evaluations[-1].nll for result in members if result.evaluations]
        statuses = {result.status for result in members}
        status = next(one for one in ("diverged", "dropped", "trained") if one in statuses)
        loss = fmean(losses) if losses and all(map(math.isfinite, losses)) and status != "diverged" else math.nan
        is_chosen = chosen.get((rank, members[0].trial.use_rslora)) == rate
        at = max((result.evaluations[-1].step for result in members if result.evaluations), default=0)
        what = "chosen" if is_chosen else f"dropped at step {at:,}" if status == "dropped" else status
        points.append(
            {
                "rank": rank,
                "rate": f"{rate:g}",
                "exact": rate,
                "loss": loss if math.isfinite(loss) else None,
                "text": nll_text(loss) + ("" if status == "trained" else "*") if math.isfinite(loss) else "diverged",
                "chosen": is_chosen,
                "what": what,
                "label": f"r={rank}, learning rate {rate:g}: validation NLL {nll_text(loss)}, {what}",
            }
        )
    rates = [f"{rate:g}" for rate in sorted({point["exact"] for point in points}, reverse=True)]
    finite = [point["loss"] for point in points if point["loss"] is not None]
    middle = (min(finite) + max(finite)) / 2 if finite else 0.0
    axes = {
        "x": {"field": "rank", "type": "ordinal", "axis": {"labelAngle": 0, "title": "rank"}},
        "y": {"field": "rate", "type": "ordinal", "sort": rates, "title": "learning rate"},
        "description": LABEL,
    }
    table = [
        (
            str(point["rank"]),
            str(point["rate"]),
            DASH if point["loss"] is None else nll_text(point["loss"]),
            str(point["what"]),
        )
        for point in points
    ]
    return Chart(
        "rates",
        "Learning rates",
        "The last validation NLL of each rank and learning rate, the mean over seeds. A thick frame is the rate that "
        "validation chose, for the largest rank where a rank has one alone; an asterisk marks a rate that was dropped "
        "early, whose loss is of that step.",
        specification(
            data={"values": points},
            height=34 * len(rates),
            encoding=axes,
            layer=[
                {
                    "mark": {"type": "rect"},
                    "encoding": {
                        "color": {
                            "field": "loss",
                            "type": "quantitative",
                            "scale": {"scheme": "blues", "reverse": True, "zero": False},
                            "legend": {"title": "NLL, nats"},
                        }
                    },
                },
                {
                    "transform": [{"filter": "datum.chosen"}],
                    "mark": {"type": "rect", "fill": None, "stroke": "currentColor", "strokeWidth": 3},
                },
                {
                    "mark": {"type": "text", "aria": False},
                    "encoding": {
                        "text": {"field": "text"},
                        "color": {
                            "condition": [
                                {"test": "datum.loss === null", "value": "currentColor"},
                                {"test": f"datum.loss < {middle}", "value": "white"},
                            ],
                            "value": "#1b1f24",
                        },
                    },
                },
            ],
        ),
        sheet_of("Learning rates", ("rank", "learning rate", "validation NLL", "what became of it"), table),
    )
