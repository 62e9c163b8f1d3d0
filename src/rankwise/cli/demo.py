"""`rankwise demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rankwise.compare.config import ComparisonConfig

# Chosen so that two CPU cores finish in minutes: short texts, few steps. In so little training seeds agree on no less
# than a few points of accuracy, so the margin is three. One alpha for all ranks, with alpha/rank, gives them about the
# same best learning rate; with alpha = rank the rate that rank 4 wants kills rank 32.
DEMO = ComparisonConfig(
    model="embedded",
    task="docmatch",
    ranks=(4, 8, 16, 32),
    alpha=16.0,
    learning_rates=(5e-4, 1e-3, 2e-3),
    seeds=3,
    steps=150,
    batch_size=16,
    max_length=32,
    metric="accuracy",
    margin=0.03,
)


def demo(
    run: Annotated[
        Path | None, typer.Option(help="Run directory that everything is kept in [a new one under runs/].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, or extend one.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds everything is trained with.")] = DEMO.seeds,
    first_seed: Annotated[int, typer.Option(min=0, help="The first seed; the others follow it.")] = DEMO.first_seed,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Compare ranks 4, 8, 16 and 32 on the embedded model and task, in minutes on two CPU cores.

    Does a docstring describe a function? MiniLM learns to tell, on Python's own standard library. A rank suffices when
    it loses less than three points of accuracy to rank 32. Where more seeds would tell, --seeds gives it more.
    """
    from rankwise.cli.show import show_comparison

    show_comparison(
        replace(DEMO, seeds=seeds, first_seed=first_seed), run=run, resume=resume, json=json, command="rankwise demo"
    )
