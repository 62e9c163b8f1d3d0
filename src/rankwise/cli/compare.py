"""`rankwise compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.cli.options import check_resume, configured
from rankwise.errors import UserError


def compare(
    *,
    file: Annotated[
        Path | None, typer.Argument(help="YAML file of options; those given on the command line override it.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run directory that everything is kept in [a new one under runs/].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, or extend one.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show trials, time and memory from a few timed steps; start nothing.")
    ] = False,
    require_resolved: Annotated[
        bool, typer.Option("--require-resolved", help="Leave with exit code 3 where the answer is not resolved.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
    options: dict[str, Any],
) -> None:
    """Compare LoRA ranks on a task, and name the smallest that suffices: accuracy, training time and memory of each.

    Data of your own: --train train.csv --text sentence --label label.

    rankwise compare --task docmatch --ranks 4,16 --steps 100 --max-length 32
    """
    if plan and (run is not None or resume or require_resolved):
        raise UserError("plan: it is of a new run and starts none; leave out run, resume and require-resolved")
    check_resume(run, resume=resume)
    config = configured(file, options, begun=run if resume else None)

    from rankwise.cli.show import show_comparison, show_plan

    if plan:
        show_plan(config, json=json)
    else:
        comparison = show_comparison(config, run=run, resume=resume, json=json)
        if require_resolved and comparison.recommendation.status != "resolved":
            raise typer.Exit(3)
