"""`rankwise estimate`."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from rankwise.base.quantize import Quantization
from rankwise.errors import UserError
from rankwise.memory.gpus import gpu_bytes
from rankwise.memory.settings import Attention, Dtype, Engine, Loss, Method, Optimizer, StepSettings
from rankwise.values import parse_ranks, parse_targets

_STEP = StepSettings()


def estimate(
    model: Annotated[
        str, typer.Argument(help="A name of the catalogue, a directory, a config.json, or a hub id (owner/name).")
    ],
    ranks: Annotated[str, typer.Option(metavar="LIST", help="Ranks of the adapter.")] = "4,8,16,32,64",
    target_modules: Annotated[
        str, typer.Option(metavar="LIST", help="Modules to adapt: all-linear, names, or a regular expression.")
    ] = "all-linear",
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences of one batch.")] = _STEP.batch_size,
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens of the longest sequence.")] = _STEP.seq_len,
    dtype: Annotated[Dtype, typer.Option(help="The base model's.")] = _STEP.dtype,
    adapter_dtype: Annotated[Dtype, typer.Option(help="The adapter's.")] = _STEP.adapter_dtype,
    optimizer: Annotated[Optimizer, typer.Option(help="What updates the adapter.")] = _STEP.optimizer,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations in the backward pass.")
    ] = False,
    attention: Annotated[Attention, typer.Option(help="How attention is computed.")] = _STEP.attention,
    loss: Annotated[Loss, typer.Option(help="Logits of all tokens at once, or of 1,024 at a time.")] = _STEP.loss,
    quantize: Annotated[
        Quantization, typer.Option(help="How the base model's linear layers are stored.")
    ] = _STEP.quantize,
    autocast: Annotated[
        bool, typer.Option("--autocast", help="Compute in bfloat16 under autocast, as a Trainer with bf16=True.")
    ] = False,
    padding: Annotated[
        bool | None,
        typer.Option(help="Whether rows are padded, so that attention takes a mask [with two or more rows]."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Say what fits: rtx4090, a100-80, h200 …, or a size such as 24GiB.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="What trains: peft, or a pack of several adapters as in `rankwise compare`.")
    ] = "peft",
    pack_size: Annotated[
        int | None, typer.Option(min=1, help="Adapters trained together, with --engine pack [1].", show_default=False)
    ] = None,
    method: Annotated[
        Method, typer.Option(help="Simulate a step of the model's own code, or use a formula: at once, and rough.")
    ] = "simulate",
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Take two real steps on this machine's device, and correct the estimate."),
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show the model's linear layers.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Estimate what each LoRA rank costs: parameters, memory, what fits a GPU. Needs no weights and no GPU.

    rankwise estimate llama-3.2-3b --ranks 8,64 --target-modules q_proj,v_proj --gpu rtx4090
    """
    settings = StepSettings(
        batch_size=batch_size,
        seq_len=seq_len,
        dtype=dtype,
        adapter_dtype=adapter_dtype,
        optimizer=optimizer,
        checkpointing=checkpointing,
        attention=attention,
        loss=loss,
        quantize=quantize,
        autocast=autocast,
        padding=padding,
    )
    if engine == "peft" and pack_size is not None:
        raise UserError("pack-size: PEFT trains one adapter; give --engine pack, too")
    if engine == "pack" and method == "formula":
        raise UserError("engine pack: the formula knows no packs; leave out --method formula")
    try:
        chosen_ranks = parse_ranks(ranks)
    except UserError as error:
        raise UserError(f"ranks: {error}") from None
    targets = parse_targets(target_modules)
    room = None if gpu is None else gpu_bytes(gpu)

    # Collecting garbage takes a fifth of the time that torch and transformers take to import.
    gc.disable()
    from rankwise.cli.output import print_json
    from rankwise.memory.estimate import estimate_ranks

    estimated = estimate_ranks(
        model,
        chosen_ranks,
        targets,
        settings,
        gpu_bytes=room,
        method=method,
        pack_size=(pack_size or 1) if engine == "pack" else 0,
        calibrate=calibrate,
    )
    if json:
        print_json(estimated.to_dict())
        return
    from rich.console import Console

    from rankwise.report.estimate import estimate_table, layer_table, methods_table

    console = Console()
    console.print(estimate_table(estimated))
    if layers:
        console.print(layer_table(estimated))
    if estimated.methods:
        console.print(methods_table(estimated))
