"""`rankwise export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Run directory of a finished comparison.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="TRAINER", help="peft, trl, axolotl, llama-factory, unsloth, torchtune, litgpt, or hub:USER/NAME."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File or directory to write [standard output; peft and hub: a directory in the run's export/]."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With hub: write the folder and send nothing.")] = False,
) -> None:
    """Write a comparison's recommendation as a configuration for another trainer, or publish its adapter on the hub.

    rankwise export runs/demo --to peft
    """
    from rankwise.export.write import export_recommendation

    exported = export_recommendation(run, to, out, dry_run=dry_run)
    for remark in exported.remarks:
        print(f"rankwise: {remark}", file=sys.stderr)
    print(exported.address or exported.path or exported.text, end="" if exported.path is None else "\n")
