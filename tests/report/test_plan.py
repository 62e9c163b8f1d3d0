from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from rankwise.records import ComparisonPlan
from rankwise.report.plan import plan_table

PLAN = ComparisonPlan(
    trials=24,
    packs=3,
    steps=1000,
    training_seconds=600.0,
    training_seconds_at_most=900.0,
    peak_memory_bytes=None,
    disk_bytes=2_000_000_000,
    notes=("a note",),
)


@pytest.mark.parametrize(
    ("plan", "time"),
    [
        (
            PLAN,
            "about 10 min 00 s, up to 15 min 00 s where more learning rates are tried and none is dropped; "
            "evaluation not counted",
        ),
        (replace(PLAN, training_seconds_at_most=600.0), "about 10 min 00 s; evaluation not counted"),
    ],
)
def test_a_plan_says_what_it_counts(plan: ComparisonPlan, time: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(plan_table(plan))
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines == [
        "trials 24 to begin with, of up to 1,000 steps each, in 3 packs",
        f"training time {time}",
        "peak memory –, the base model included",
        "disk 2 GB at most",
        "note: a note",
    ]
