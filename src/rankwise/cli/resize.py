"""`rankwise resize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def resize(
    adapter: Annotated[Path, typer.Argument(help="A LoRA adapter in PEFT's format, a run, or a run's trial.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory to write, which must not exist.")],
    rank: Annotated[int | None, typer.Option(help="Rank of the new adapter.", show_default=False)] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Instead of a rank: the smallest that keeps this share of the update's squared norm, such as 0.95.",
            show_default=False,
        ),
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="With --energy: the smallest rank for each module by itself.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Write the adapter of lower rank that is nearest to a trained one, in PEFT's format.

    How near is in the weights, not in the task: evaluate it before you rely on it.

    rankwise resize runs/demo --energy 0.95 --out runs/demo-smaller
    """
    from rankwise.cli.output import print_json
    from rankwise.spectrum.resize import resize_adapter

    resized = resize_adapter(adapter, out, rank=rank, energy=energy, per_layer=per_layer)
    if json:
        print_json(resized.to_dict())
        return
    from rich.console import Console

    from rankwise.report.spectrum import resized_table

    Console().print(resized_table(resized))
