"""`rankwise demo`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.options import check_resume
from rankwise.compare.config import ComparisonConfig


class DemoTask(StrEnum):
    """The two kinds of tasks."""

    CLASSIFICATION = "classification"
    INSTRUCTION = "instruction"


# Chosen so that two CPU cores finish in minutes: short texts, few steps. In so little training seeds agree on no less
# than a few points of accuracy, so the first one's margin is three. One alpha for all ranks, with alpha/rank, gives
# them about the same best learning rate; with alpha = rank the rate that rank 4 wants kills rank 32. No trial leaves
# docmatch's plateau before step 80 or so: a rung before that would rank noise, and 150 steps leave some seeds on it.
DEMOS = {
    DemoTask.CLASSIFICATION: ComparisonConfig(
        model="embedded",
        task="docmatch",
        ranks=(4, 8, 16, 32),
        alpha=8.0,
        learning_rates=(5e-4, 1e-3, 2e-3),
        seeds=3,
        steps=200,
        batch_size=16,
        max_length=32,
        evaluations=2,
        metric="accuracy",
        margin=0.03,
    ),
    DemoTask.INSTRUCTION: ComparisonConfig(
        model="embedded-lm",
        task="docstrings",
        ranks=(1, 4, 16),
        alpha=16.0,
        learning_rates=(1e-3, 3e-3, 1e-2),
        full_learning_rates=(7e-4, 1.5e-3),
        seeds=3,
        steps=80,
        batch_size=16,
        max_length=64,
        max_validation_examples=256,
        evaluations=2,
    ),
}
_SEEDS = 3


def demo(
    task: Annotated[
        DemoTask, typer.Option(help="Classification, or instruction tuning of a language model.")
    ] = DemoTask.CLASSIFICATION,
    run: Annotated[
        Path | None, typer.Option(help="Run directory that everything is kept in [a new one under runs/].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, or extend one.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds everything is trained with.")] = _SEEDS,
    first_seed: Annotated[int, typer.Option(min=0, help="The first seed; the others follow it.")] = 0,
    report_to: Annotated[
        str, typer.Option(metavar="LIST", help="Show trials in tensorboard, mlflow, wandb or trackio as well.")
    ] = "none",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """A whole comparison on an embedded model and task, in minutes on two CPU cores.

    classification: does a docstring describe a function? MiniLM learns to tell, on Python's own standard library, with
    ranks 4 to 32. A rank suffices when it loses less than three points of accuracy to rank 32.

    instruction: a small language model, which is made on this machine first, learns to write a function's docstring,
    with ranks 1 to 16 and full fine-tuning. A rank suffices when it keeps 95 % of what rank 16 gains.

    Where more seeds would tell, --seeds gives it more.

    rankwise demo --run runs/demo
    """
    check_resume(run, resume=resume)
    config = ComparisonConfig.from_mapping(
        DEMOS[task].to_dict() | {"seeds": seeds, "first_seed": first_seed, "report_to": report_to},
        origin="the command line",
    )

    from rankwise.cli.show import show_comparison

    show_comparison(config, run=run, resume=resume, json=json)
