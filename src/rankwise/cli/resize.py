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
    test: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Score both adapters on these data, which training did not see.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With --test: the base model, where the adapter names another place.", show_default=False),
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="With --test: column of the text.", show_default=False)
    ] = None,
    text_pair: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="With --test: column of the second text.", show_default=False)
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="With --test: column of the label.", show_default=False)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="With --test: cut examples to this many tokens.", show_default=False)
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="With --test: run code that the model brings.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Write the adapter of lower rank that is nearest to a trained one, in PEFT's format.

    How near is in the weights, not in the task: --test measures both on data. An adapter in a run directory knows its
    model and columns.

    rankwise resize runs/demo --energy 0.95 --out runs/demo-smaller
    """
    from rankwise.cli.output import print_json
    from rankwise.cli.progress import watched
    from rankwise.compare.observer import telling
    from rankwise.spectrum.resize import resize_adapter

    with watched() as observe:
        resized = resize_adapter(
            adapter,
            out,
            rank=rank,
            energy=energy,
            per_layer=per_layer,
            test=test,
            model=model,
            text=text,
            text_pair=text_pair,
            label=label,
            max_length=max_length,
            trust_remote_code=trust_remote_code or None,
            tell=telling(observe),
        )
    if json:
        print_json(resized.to_dict())
        return
    from rich.console import Console

    from rankwise.report.spectrum import resized_table

    Console().print(resized_table(resized))
