"""`rankwise inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    adapter: Annotated[Path, typer.Argument(help="A LoRA adapter in PEFT's format, a run, or a run's trial.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Show how much of its rank a trained adapter uses: the singular values of every module's update, summed up.

    The JSON document has them all, by module, by layer and by kind of projection. Needs no base model and no GPU.

    rankwise inspect runs/demo
    """
    from rankwise.cli.output import print_json
    from rankwise.spectrum.inspect import inspect_adapter

    spectrum = inspect_adapter(adapter)
    if json:
        print_json(spectrum.to_dict())
        return
    from rich.console import Console

    from rankwise.report.spectrum import spectrum_table

    Console().print(spectrum_table(spectrum))
