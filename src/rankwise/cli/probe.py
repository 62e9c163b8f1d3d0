"""`rankwise probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.cli.options import configured

# Of a comparison's configuration, what bears on a probe.
OPTIONS = frozenset(
    {
        "model",
        "task",
        "train",
        "validation",
        "test",
        "text",
        "text_pair",
        "label",
        "group",
        "learn_prompts",
        "skip_bad",
        "keep_leaked",
        "max_train_examples",
        "max_validation_examples",
        "max_test_examples",
        "max_length",
        "alpha",
        "rslora",
        "target_modules",
        "learning_rates",
        "first_seed",
        "batch_size",
        "gradient_checkpointing",
        "max_grad_norm",
        "dtype",
        "quantize",
        "device",
        "trust_remote_code",
    }
)


def probe(
    *,
    file: Annotated[
        Path | None, typer.Argument(help="YAML file of options, the comparison's own; the command line overrides it.")
    ] = None,
    examples: Annotated[int, typer.Option(help="Most training examples to use, half for each of two warm-ups.")] = 1024,
    params: Annotated[
        int | None, typer.Option(help="Also give each module a rank, so that A and B have at most so many parameters.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
    options: dict[str, Any],
) -> None:
    """Name a rank to look at before a comparison, and a grid around it, from two short warm-ups: a hint.

    Of several learning rates the first is used. Test data are not scored.

    On 5 tasks, three seeds each, the rank that the probe named was one that the full grid allows in 8 of 15, next to
    that in 4, further off in 3, losing at worst 9.1 times the margin, for 4 % of its time (median): docs/fidelity.md.

    rankwise probe --task docmatch --max-length 32 --examples 512
    """
    config = configured(file, options)

    from rich.console import Console

    from rankwise.cli.output import print_json
    from rankwise.cli.progress import watched
    from rankwise.compare.observer import telling
    from rankwise.report.probe import probe_table
    from rankwise.spectrum.probe import probe_ranks

    with watched() as observe:
        found = probe_ranks(
            config,
            examples=examples,
            params=params,
            observe=telling(observe),
        )
    if json:
        print_json(found.to_dict())
    else:
        Console().print(probe_table(found))
