"""`rankwise demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwise.compare.config import ComparisonConfig

# Chosen so that two CPU cores finish in minutes: short texts, small batches, few steps, and two rates of
# which the lower ranks want the higher one.
DEMO = ComparisonConfig(
    model="embedded",
    task="docmatch",
    ranks=(4, 8, 16, 32),
    learning_rates=(5e-4, 1e-3),
    seeds=3,
    steps=200,
    batch_size=8,
    max_length=32,
    evaluations=2,
)


def demo(
    run: Annotated[
        Path | None, typer.Option(help="Run directory that everything is kept in [a new one under runs/].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Compare ranks 4, 8, 16 and 32 on the embedded model and task, in minutes on two CPU cores.

    Does a docstring describe a function? MiniLM learns to tell, on Python's own standard library.
    """
    from rankwise.cli.show import show_comparison

    show_comparison(DEMO, run=run, resume=resume, json=json, command="rankwise demo")
