"""What a comparison would take, on a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankwise.records import ComparisonPlan
from rankwise.report.text import bytes_text, seconds_text


def plan_table(plan: ComparisonPlan) -> RenderableType:
    """A line for each thing that a comparison takes, and the notes below."""
    table = Table.grid(padding=(0, 2))
    packs = "1 pack" if plan.packs == 1 else f"{plan.packs} packs"
    table.add_row("trials", f"{plan.trials} to begin with, of up to {plan.steps:,} steps each, in {packs}")
    table.add_row("training time", _training_time(plan))
    table.add_row("peak memory", f"{bytes_text(plan.peak_memory_bytes)}, the base model included")
    table.add_row("disk", f"{bytes_text(plan.disk_bytes)} at most")
    return Group(table, *(Text(f"note: {note}") for note in plan.notes))


def _training_time(plan: ComparisonPlan) -> str:
    expected, at_most = seconds_text(plan.training_seconds), seconds_text(plan.training_seconds_at_most)
    more = "" if expected == at_most else f", up to {at_most} where more learning rates are tried and none is dropped"
    return f"about {expected}{more}; evaluation not counted"
