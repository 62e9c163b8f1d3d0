"""The tables of docs/fidelity.md, and the sentences that the program quotes, from benchmarks/results/fidelity.json.

python -m benchmarks.fidelity.page
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import binomtest

RESULTS = Path("benchmarks/results/fidelity.json")
PAGE = Path("docs/fidelity.md")
_BEGIN = "<!-- written by benchmarks.fidelity.page -->"
_WAYS = {"ladder": "ladder", "cut": "cut alone", "probe": "probe"}

Found = dict[str, Any]


def main() -> None:
    record = json.loads(RESULTS.read_text())
    head, _, _ = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(head + "\n".join([_BEGIN, *page(record), ""]))
    for way in ("ladder", "probe"):
        print(f"src/rankwise/fidelity.py: {way}: {sentence(way, record)}")


def sentence(way: str, record: Found) -> str:
    """What the program says of a ladder or a probe."""
    tasks, found = record["findings"]["tasks"], record["findings"]["summary"][way]
    said = {"ladder": "the ladder's answer", "probe": "the rank that the probe named"}[way]
    seeds = "" if found["named"] == found["tasks"] else ", three seeds each,"
    places = f"one that the full grid allows in {found['same']} of {found['named']}"
    if way == "ladder":  # the probe's are three a task, and so not independent
        allowed = binomtest(found["same"], found["named"]).proportion_ci()
        places += f" ({100 * allowed.low:.0f} to {100 * allowed.high:.0f} %, 95 % sure)"
    if found["same"] < found["named"]:
        further = found["named"] - found["same"] - found["neighbour"]
        places += f", next to that in {found['neighbour']}, further off in {further}"
    places += f", losing at worst {found['worst_regret_in_margins']:.1f} times the margin"
    if way == "ladder":
        cost = (
            f"{100 * median(task[way]['share_of_trial_steps'] for task in tasks.values()):.0f} % of its training steps"
        )
    else:
        cost = f"{100 * found['median_share_of_seconds']:.0f} % of its time"
    return f"On {found['tasks']} tasks{seeds} {said} was {places}, for {cost} (median): docs/fidelity.md."


def page(record: Found) -> Iterator[str]:
    """The page below its introduction, line by line."""
    tasks, summary = record["findings"]["tasks"], record["findings"]["summary"]
    yield f"`{record['command']}`"
    yield ""
    yield (
        "| way | named | allowed by the grid | next to that | further off | too small | too large "
        "| share of the grid's time, median | worst regret, in margins |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for way, name in _WAYS.items():
        of = summary[way]
        further = of["named"] - of["same"] - of["neighbour"]
        cells = [name, of["named"], of["same"], of["neighbour"], further, of["too_small"], of["too_large"]]
        cells += [f"{of['median_share_of_seconds']:.2f}", f"{of['worst_regret_in_margins']:.2f}"]
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    yield "## Task by task"
    yield ""
    yield (
        "The grid's rank is a span where the data cannot tell its ranks apart. The ladder's column has the ranks that "
        "it trained, the answer and its regret in margins with 95 % limits; the others' the ranks by seed and the "
        "largest regret of the three; beside the probe stands the capacity floor. Shares are of the grid's time "
        "and, of the ladder, also of its training steps."
    )
    yield ""
    yield "| task | grid | grid's time | ladder | cut alone | probe | floor | shares: ladder (steps), cut, probe |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, task in tasks.items():
        yield f"| {' | '.join(_row(name, task))} |"
    yield ""


def _row(name: str, task: Found) -> list[str]:
    grid, margin = task["grid"], task["grid"]["margin"]
    low, high = grid["possible"][0], grid["possible"][-1]
    shares = ", ".join(
        [
            f"{task['ladder']['share_of_seconds']:.2f} ({task['ladder']['share_of_trial_steps']:.2f})",
            *(f"{task[way]['share_of_seconds']:.2f}" for way in ("cut", "probe")),
        ]
    )
    (answer,) = task["ladder"]["named"]
    trained = ", ".join(map(str, task["ladder"]["trained"]))
    return [
        name,
        f"{low if low == high else f'{low}–{high}'} ({grid['status']})",
        f"{grid['seconds']:,.0f} s",
        f"{trained} → {answer['rank']}: {_regret(answer, margin)}",
        _by_seed(task["cut"]["named"], margin),
        _by_seed(task["probe"]["named"], margin),
        str(task["probe"]["capacity_floor"]),
        shares,
    ]


def _by_seed(named: list[Found], margin: float | None) -> str:
    worst = max(named, key=lambda one: one["regret"][0])
    return f"{', '.join(str(one['rank']) for one in named)}: {_regret(worst, margin)}"


def _regret(named: Found, margin: float | None) -> str:
    if named["regret"] is None or not margin:
        return "–"
    mean, low, high = (None if value is None else value / margin for value in named["regret"])
    if not mean:
        return "0"
    limits = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    return f"{mean:.2f}{limits}".replace("-", "−")


if __name__ == "__main__":
    main()
