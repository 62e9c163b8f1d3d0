"""The tables of an estimate that is made up by hand: they fit the terminal and say what they are given."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Literal

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from rankwise.records import LayerGroup, MemoryEstimate, MemoryParts, ModelEstimate, RankEstimate, TrainingCost
from rankwise.report.estimate import estimate_table, layer_table, methods_table

WIDTHS = [80, 120]
TOTAL = 3_212_749_824


def cost(
    method: Literal["full", "lora", "qlora"], rank: int | None, trainable: int, activations: int = 12_309_209_096
) -> TrainingCost:
    parts = MemoryParts(
        base_weights=6_425_500_160 if method != "qlora" else 2_365_000_000,
        adapter_weights=0 if rank is None else 4 * trainable,
        gradients=0,
        optimizer_states=8 * trainable,
        activations=activations,
        overhead=3_169_117_240,
    )
    return TrainingCost(
        method,
        MemoryEstimate(
            rank=rank,
            trainable_params=trainable,
            memory=parts,
            peak_bytes=parts.total,
            peak_bytes_low=round(0.98 * parts.total),
            peak_bytes_high=round(1.08 * parts.total),
            reserved_bytes=round(1.06 * parts.total),
            peak_at="the backward pass of loss_utils.py:42 (fixed_cross_entropy)",
        ),
        fits=rank is not None,
        largest_batch=0 if rank is None else 12,
    )


def row(rank: int) -> RankEstimate:
    trainable = 286_720 * rank
    return RankEstimate(
        rank=rank,
        alpha=float(rank),
        trainable_percent=100 * trainable / (TOTAL + trainable),
        compression=TOTAL / trainable,
        matrix_compression=1228.8 / rank,
        adapter_file_bytes=4 * trainable + 15_056,
        rank_share_of_peak=0.0001875 * rank,
        cost=cost("lora", rank, trainable),
    )


ESTIMATE = ModelEstimate(
    model="llama-3.2-3b",
    total_params=TOTAL,
    settings={
        "method": "simulate",
        "batch_size": 4,
        "seq_len": 1024,
        "dtype": "bfloat16",
        "adapter_dtype": "float32",
        "optimizer": "adamw",
        "checkpointing": False,
        "attention": "sdpa",
        "loss": "full",
        "quantize": "none",
        "autocast": False,
        "padding": True,
    },
    target_modules=("q_proj", "v_proj"),
    linear_layers=(LayerGroup("q_proj", 3072, 3072, 28, 1, True), LayerGroup("down_proj", 14336, 4096, 32, 8, False)),
    full_fine_tuning=cost("full", None, TOTAL),
    ranks=(row(4), row(32)),
    methods=(
        cost("full", None, TOTAL),
        cost("lora", 4, 1_146_880),
        cost("qlora", 4, 1_146_880, activations=999_000_000),
    ),
    gpu_bytes=25_757_220_864,
    cuda_context_bytes=629_145_600,
    calibration=None,
    largest_rank_that_fits=32,
    seconds=5.5,
    notes=("rank 32 is more than 4 of 14 adapted layers have (a.b: 8): there its parameters are redundant", "another"),
)
WITHOUT_GPU = dataclasses.replace(
    ESTIMATE,
    gpu_bytes=None,
    largest_rank_that_fits=None,
    methods=(),
    ranks=tuple(
        dataclasses.replace(each, cost=dataclasses.replace(each.cost, fits=None, largest_batch=None))
        for each in ESTIMATE.ranks
    ),
)


def rendered(renderable: RenderableType, width: int) -> list[str]:
    """What a terminal of that width shows; rich's padding at the right is not shown."""
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def rows(renderable: RenderableType, width: int) -> list[str]:
    """The lines below the table's rule, with single spaces."""
    lines = rendered(renderable, width)
    rule = next(index for index, line in enumerate(lines) if line.startswith("──"))
    return [" ".join(line.split()) for line in lines[rule + 1 :]]


def text(renderable: RenderableType, width: int) -> str:
    return " ".join(" ".join(rendered(renderable, width)).split())


def changed(**settings: object) -> ModelEstimate:
    return dataclasses.replace(ESTIMATE, settings={**ESTIMATE.settings, **settings})


def test_a_row_for_each_rank_and_for_full_fine_tuning() -> None:
    assert rows(estimate_table(ESTIMATE), 80)[:3] == [
        "4 1,146,880 0.0357 9.18 MB 21.9 GB (21.5–23.7) yes 12",
        "32 9,175,040 0.285 73.4 MB 22 GB (21.6–23.8) yes 12",
        "full 3,212,749,824 100 25.7 GB 47.6 GB (46.7–51.4) no 0",
    ]


def test_a_wider_terminal_shows_what_the_adapter_is_to_the_model() -> None:
    assert rows(estimate_table(ESTIMATE), 120)[:3] == [
        "4 1,146,880 0.0357 9.18 MB 21.9 GB (21.5–23.7) 0.1 % 4.6 MB 2,801× 307.2× yes 12",
        "32 9,175,040 0.285 73.4 MB 22 GB (21.6–23.8) 0.6 % 36.7 MB 350× 38.4× yes 12",
        "full 3,212,749,824 100 25.7 GB 47.6 GB (46.7–51.4) no 0",
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_without_a_gpu_nothing_is_said_of_one(width: int) -> None:
    shown = text(estimate_table(WITHOUT_GPU), width)
    assert not re.search("none|fits|largest batch", shown, re.IGNORECASE)
    assert "22 GB (21.6–23.8) 0.6 % 36.7 MB" in shown


@pytest.mark.parametrize("width", WIDTHS)
def test_the_caption_says_what_the_step_is_and_what_the_figures_are(width: int) -> None:
    shown = text(estimate_table(changed(quantize="nf4", checkpointing=True)), width)
    assert "LoRA on q_proj,v_proj; a step of 4 × 1,024 tokens, bfloat16 base in nf4, float32 adapter" in shown
    assert "adamw, checkpointing." in shown
    assert "A CUDA context of about 629 MB comes on top." in shown
    assert "in the backward pass of loss_utils.py:42 (fixed_cross_entropy)." in shown
    assert "Of the ranks asked for, the largest that fits is 32." in shown


def test_a_pack_is_named_where_it_is_what_trains() -> None:
    assert "LoRA on q_proj,v_proj, a pack of 8; a step" in text(estimate_table(changed(pack_size=8)), 80)
    assert "pack" not in text(estimate_table(changed(pack_size=None)), 80)


def test_the_caption_is_as_wide_as_the_terminal() -> None:
    table = rendered(estimate_table(WITHOUT_GPU), 120)
    assert max(map(len, table[-8:])) > max(map(len, table[:6]))


def test_a_formulas_figures_are_not_said_to_be_torchs() -> None:
    assert "as torch counts it" in text(estimate_table(ESTIMATE), 80)
    shown = text(estimate_table(changed(method="formula")), 80)
    assert "by a formula, which is rough" in shown
    assert "as torch counts it" not in shown


@pytest.mark.parametrize(("share", "advised"), [(0.099, True), (0.2, False)])
def test_memory_is_said_to_be_saved_elsewhere_only_where_it_is(share: float, advised: bool) -> None:
    last = dataclasses.replace(ESTIMATE.ranks[-1], rank_share_of_peak=share)
    shown = text(estimate_table(dataclasses.replace(ESTIMATE, ranks=(ESTIMATE.ranks[0], last))), 80)
    assert f"At rank 32 the rank accounts for {100 * share:.1f} % of the peak" in shown
    assert ("choose it for the task" in shown) == advised


def test_no_rank_may_fit() -> None:
    assert "none fits" in text(estimate_table(dataclasses.replace(ESTIMATE, largest_rank_that_fits=None)), 80)


def test_where_a_formula_cannot_tell_what_fits_nothing_is_claimed() -> None:
    row = dataclasses.replace(
        ESTIMATE.ranks[0], cost=dataclasses.replace(ESTIMATE.ranks[0].cost, fits=None, largest_batch=None)
    )
    estimate = dataclasses.replace(ESTIMATE, ranks=(row,), largest_rank_that_fits=None)
    assert rows(estimate_table(estimate), 120)[0].endswith("307.2× – –")
    assert "none fits" not in text(estimate_table(estimate), 120)


def test_a_range_over_two_units_names_both() -> None:
    around = dataclasses.replace(ESTIMATE.full_fine_tuning.memory, peak_bytes=10**9, peak_bytes_low=98 * 10**7)
    across = dataclasses.replace(ESTIMATE.full_fine_tuning, memory=around)
    assert "1 GB (980 MB–51.4 GB)" in text(
        estimate_table(dataclasses.replace(ESTIMATE, full_fine_tuning=across)), width=120
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_ways_to_train_have_a_line_each(width: int) -> None:
    assert rows(methods_table(ESTIMATE), width) == [
        "full fine-tuning 6.43 GB 12.3 GB 47.6 GB (46.7–51.4) no 0",
        "LoRA, rank 4 6.43 GB 12.3 GB 21.9 GB (21.5–23.7) yes 12",
        "QLoRA, rank 4 2.37 GB 999 MB 6.55 GB (6.42–7.07) yes 12",
        "Activations: those alive at the peak.",
        "QLoRA: the base model in nf4.",
    ]
    assert "on a GPU of 25.8 GB" in text(methods_table(ESTIMATE), width)
    assert "in nf4-double" in text(methods_table(changed(quantize="nf4-double")), width)


@pytest.mark.parametrize("width", WIDTHS)
def test_linear_layers_show_their_shapes_and_experts(width: int) -> None:
    assert rows(layer_table(ESTIMATE), width) == ["q_proj 3,072 3,072 28 yes", "down_proj 14,336 4,096 32 8"]


def test_markup_in_names_and_notes_is_text() -> None:
    hostile = dataclasses.replace(
        ESTIMATE,
        model="[red]m[/red]",
        target_modules=r".*\.[qv]_proj[/]",
        notes=("[bold]n[/bold] [/x]",),
        linear_layers=(LayerGroup("[/q]", 1, 2, 3, 1, True),),
    )
    shown = text(estimate_table(hostile), 120)
    assert "[red]m[/red]: 3,212,749,824 parameters" in shown
    assert r"LoRA on .*\.[qv]_proj[/]; a step" in shown
    assert "note: [bold]n[/bold] [/x]" in shown
    assert rows(layer_table(hostile), 80) == ["[/q] 1 2 3 yes"]


@pytest.mark.parametrize("width", WIDTHS)
def test_notes_are_shown_in_full(width: int) -> None:
    shown = text(estimate_table(ESTIMATE), width)
    assert shown.endswith(" ".join(f"note: {note}" for note in ESTIMATE.notes))
    assert "note" not in text(estimate_table(dataclasses.replace(ESTIMATE, notes=())), width)
