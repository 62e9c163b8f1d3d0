"""Join the results of this folder's benchmarks to one file, and write the table of docs/validity.md from it.

python -m benchmarks.validity.page
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
PARTS = ("planted", "null", "repeats", "simulated", "rare", "seeds")
PAGE = Path("docs/validity.md")
_BEGIN = "<!-- written by benchmarks.validity.page -->"

Record = dict[str, Any]


def main() -> None:
    joined = RESULTS / "validity.json"
    records: dict[str, Record] = json.loads(joined.read_text()) if joined.exists() else {}
    for part in PARTS:
        file = RESULTS / f"{part}.json"
        if file.exists():
            records[part] = json.loads(file.read_text())
            file.unlink()
    joined.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n")
    head, _, _ = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(head + "\n".join([_BEGIN, *page(records), ""]))


def page(records: dict[str, Record]) -> Iterator[str]:
    """The page below its introduction, line by line."""
    yield from _planted(records["planted"])
    yield from _null(records["null"])
    yield from _repeats(records["repeats"])
    yield from _simulated(records["simulated"])
    yield from _rare(records["rare"])
    yield from _seeds(records["seeds"])


def _planted(record: Record) -> Iterator[str]:
    settings = record["settings"]
    yield from _heading("A rank that was planted", record)
    yield (
        f"{settings['plants']} teachers, each a frozen transformer with an update of exact rank r* and equal singular "
        f"values; students of ranks {_listed(settings['ranks'])}, {settings['seeds']} seeds, learning rates "
        f"{_listed(settings['learning_rates'])}, {settings['test_examples']:,} test examples, fresh training examples."
    )
    yield ""
    yield "| steps | r* | plants | exactly r* | 2·r* | above | unresolved | a rank below r* called sufficient |"
    yield "|---|---|---|---|---|---|---|---|"
    for budget, found in record["findings"].items():
        for planted, row in {"all": found["all plants"], **found["by planted rank"]}.items():
            outcomes = row["outcomes"]
            unresolved = sum(outcomes.get(word, {"count": 0})["count"] for word in ("unresolved", "not_plateaued"))
            counts = [outcomes.get(word, {"count": 0})["count"] for word in ("exact", "double", "above double")]
            small = row["too_small_called_sufficient"]
            cells = [budget.removesuffix(" steps"), planted, small["of"], *counts, unresolved, _share(small)]
            yield f"| {' | '.join(map(str, cells))} |"
    yield ""


def _null(record: Record) -> Iterator[str]:
    yield from _heading("Nothing to learn", record)
    yield "| labels | a larger rank is said to help | a gain is claimed | answers |"
    yield "|---|---|---|---|"
    names = {"coin": "coin flips, head trained", "itself": "the frozen model's own, head frozen"}
    for kind, row in record["findings"].items():
        statuses = ", ".join(f"{status} {count}" for status, count in row["statuses"].items())
        yield f"| {names[kind]} | {_share(row['larger_rank_claimed'])} | {_share(row['gain_claimed'])} | {statuses} |"
    yield ""


def _repeats(record: Record) -> Iterator[str]:
    findings = record["findings"]
    yield from _heading("The same rank twice", record)
    yield "| seeds on each side | told apart at 95 % |"
    yield "|---|---|"
    for seeds, row in findings["told_apart"].items():
        yield f"| {seeds.removesuffix(' seeds')} | {_share(row)} |"
    yield ""


def _simulated(record: Record) -> Iterator[str]:
    coverage, claims, power = record["findings"].values()
    yield from _heading("Simulated losses: coverage", record)
    yield "How often the 95 % interval covers the truth, beside Student's t over seeds alone and over examples alone."
    yield ""
    yield "| seeds | variance | crossed | over seeds alone | over examples alone |"
    yield "|---|---|---|---|---|"
    for row in coverage:
        shares = [_share(row[kind]) for kind in ("crossed", "over seeds alone", "over examples alone")]
        yield f"| {row['seeds']} | {row['source']} | {' | '.join(shares)} |"
    yield ""
    yield "### False claims"
    yield ""
    yield "How often a claim is made that the truth forbids; each side of the decision may err in 5 %."
    yield ""
    sources = list(dict.fromkeys(row["source"] for row in claims))
    yield f"| claim | seeds | {' | '.join(sources)} |"
    yield f"|---|---|{'---|' * len(sources)}"
    for claim, seeds in dict.fromkeys((row["claim"], row["seeds"]) for row in claims):
        shares = [_share(row) for row in claims if (row["claim"], row["seeds"]) == (claim, seeds)]
        yield f"| {claim} | {seeds} | {' | '.join(shares)} |"
    yield ""
    yield "### The needed figure, followed"
    yield ""
    yield "Of unresolved comparisons, extended to what they asked for: how many then show that the rank suffices."
    yield ""
    yield "| seeds | more of | truly lost | needed, median | resolved | told that it alone never would |"
    yield "|---|---|---|---|---|---|"
    for row in power:
        cells = [row["seeds"], row["more"], row["truly lost"], f"{row['needed, median']:,.0f}"]
        never = f"{row['not followed']} of {row['not followed'] + row['sufficient']['of']:,}"
        yield f"| {' | '.join(map(str, cells))} | {_share(row['sufficient'])} | {never} |"
    yield ""


def _rare(record: Record) -> Iterator[str]:
    rows = record["findings"]["false claims"]
    sizes = list(dict.fromkeys(row["examples"] for row in rows))
    yield from _heading("A few examples that carry the loss", record)
    yield (
        f"A rank truly loses just the margin, on a few examples alone, with {record['settings']['seeds']} seeds: how "
        "often it is called sufficient, which may err in 5 %; and mirrored, how often it is called too small. Where "
        "none of the few is drawn, nothing tells: with 3 in 100 in 22 % of samples of 50, with 1 in 100 in 61, 37 and "
        "13 % of those of 50, 100 and 200."
    )
    yield ""
    yield f"| losses | who | {' | '.join(f'{size:,} examples' for size in sizes)} |"
    yield f"|---|---|{'---|' * len(sizes)}"
    for losses in dict.fromkeys(row["losses"] for row in rows):
        for who in ("here", "by Student's t"):
            shares = [_share(row[who]) for row in rows if row["losses"] == losses]
            yield f"| {losses} | {who} | {' | '.join(shares)} |"
    yield ""


def _seeds(record: Record) -> Iterator[str]:
    collapsing, rates = record["findings"].values()
    yield from _heading("Seeds that are not even", record)
    yield (
        "A rank of which some trainings collapse, to rank 0's loss, and whose reference's never do, so that it keeps "
        "too little: how often it is called sufficient. Where none of the seeds collapses, nothing tells; the answer "
        "says what share of trainings its seeds may have missed."
    )
    yield ""
    yield from _by_seeds("trainings that collapse", [(f"{100 * row['collapsing']:g} %", row) for row in collapsing])
    yield ""
    yield (
        "And where no rank gains and most of the chance is the seeds', another at each learning rate: how often a gain "
        "is claimed at the rate that did best on these seeds, which may be in 5 %."
    )
    yield ""
    yield from _by_seeds("learning rates", [(f"{row['rates']}", row) for row in rates])
    yield ""


def _by_seeds(what: str, rows: list[tuple[str, Record]]) -> Iterator[str]:
    seeds = list(dict.fromkeys(row["seeds"] for _, row in rows))
    yield f"| {what} | {' | '.join(f'{number} seeds' for number in seeds)} |"
    yield f"|---|{'---|' * len(seeds)}"
    for name in dict.fromkeys(name for name, _ in rows):
        yield f"| {name} | {' | '.join(_share(row) for other, row in rows if other == name)} |"


def _heading(title: str, record: Record) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield f"`{record['command']}`"
    yield ""


def _share(row: Record) -> str:
    """A share and its exact bounds, in percent."""
    return f"{100 * row['share']:.1f} % ({100 * row['low']:.1f}–{100 * row['high']:.1f})"


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    main()
