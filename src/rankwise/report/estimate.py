"""What each rank costs: the table of ranks, what fits a GPU, the linear layers, the parts of one peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial

from rich.console import RenderableType

from rankwise.records import MemoryEstimate, ModelEstimate, RankEstimate, TrainingCost
from rankwise.report.sheet import Heading, Sheet
from rankwise.report.terminal import WidestSheet, shown, terminal_table
from rankwise.report.text import bytes_text, isolated, share_text

# Where the rank takes less than this of the peak, memory is saved elsewhere.
_LITTLE = 0.1


@dataclass(frozen=True)
class _Column:
    """How one column reads a rank's row, and that of full fine-tuning."""

    header: str
    of_rank: Callable[[RankEstimate], str]
    of_full: Callable[[TrainingCost], str] = lambda _: ""


def _of_cost(header: str, read: Callable[[TrainingCost], str]) -> _Column:
    return _Column(header, lambda row: read(row.cost), read)


_COLUMNS = (
    _Column("rank", lambda row: str(row.rank), lambda _: "full"),
    _of_cost("trainable\nparams", lambda cost: f"{cost.memory.trainable_params:,}"),
    _Column("% of\nall", lambda row: f"{row.trainable_percent:.3g}", lambda _: "100"),
    _of_cost("optimizer\nstates", lambda cost: bytes_text(cost.memory.memory.optimizer_states)),
    _of_cost("peak memory\n(from–to)", lambda cost: _range(cost.memory)),
)
_GPU_COLUMNS = (
    _of_cost("fits", lambda cost: "–" if cost.fits is None else "yes" if cost.fits else "no"),
    _of_cost("largest\nbatch", lambda cost: "–" if cost.largest_batch is None else f"{cost.largest_batch:,}"),
)
_LAYER = ("name", "d_in", "d_out", "layers", "experts", "adapted")
# In this order, as many as the terminal has room for.
_WIDER_COLUMNS = (
    _Column("rank's\nshare", lambda row: share_text(row.rank_share_of_peak)),
    _Column("adapter\nfile", lambda row: bytes_text(row.adapter_file_bytes)),
    _Column("model /\nadapter", lambda row: f"{row.compression:,.0f}×"),
    _Column("matrices /\nadapters", lambda row: f"{row.matrix_compression:,.1f}×"),
)


def rank_sheet(estimate: ModelEstimate, wider: int = len(_WIDER_COLUMNS)) -> Sheet:
    """A row for each rank and for full fine-tuning, with so many of the wider columns; the notes are below, too."""
    known = estimate.gpu_bytes is not None
    columns = (*_COLUMNS, *_WIDER_COLUMNS[:wider], *(_GPU_COLUMNS if known else ()))
    rows = [[column.of_rank(row) for column in columns] for row in estimate.ranks]
    rows.append([column.of_full(estimate.full_fine_tuning) for column in columns])
    return Sheet(
        f"{isolated(estimate.model)}: {estimate.total_params:,} parameters",
        [Heading(column.header) for column in columns],
        rows,
        [*_caption(estimate), *(f"note: {isolated(note)}" for note in estimate.notes)],
    )


def methods_sheet(estimate: ModelEstimate) -> Sheet:
    """Full fine-tuning, LoRA and QLoRA on the GPU."""
    headings = [Heading("", "left"), *map(Heading, ("base\nweights", "activations", "peak memory\n(from–to)"))]
    rows = []
    for cost in estimate.methods:
        parts = cost.memory.memory
        name = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[cost.method]
        rank = "" if cost.memory.rank is None else f", rank {cost.memory.rank}"
        figures = bytes_text(parts.base_weights), bytes_text(parts.activations), _range(cost.memory)
        gpu = (column.of_full(cost) for column in _GPU_COLUMNS)
        rows.append([name + rank, *figures, *gpu])
    quantized = str(estimate.settings["quantize"])
    return Sheet(
        f"on a GPU of {bytes_text(estimate.gpu_bytes)}",
        [*headings, *(Heading(column.header) for column in _GPU_COLUMNS)],
        rows,
        [
            "Activations: those alive at the peak.",
            f"QLoRA: the base model in {'nf4' if quantized == 'none' else quantized}.",
        ],
    )


def layer_sheet(estimate: ModelEstimate) -> Sheet:
    """The linear layers by name and shape, and which are adapted."""
    headings = [Heading(text, "left" if text in ("name", "adapted") else "right") for text in _LAYER]
    rows = [
        [
            isolated(group.name),
            f"{group.d_in:,}",
            f"{group.d_out:,}",
            str(group.count),
            "" if group.experts == 1 else str(group.experts),
            "yes" if group.adapted else "",
        ]
        for group in estimate.linear_layers
    ]
    return Sheet("linear layers", headings, rows)


def memory_sheet(memory: MemoryEstimate) -> Sheet:
    """What the peak of a step is made of."""
    parts = {field.name.replace("_", " "): getattr(memory.memory, field.name) for field in fields(memory.memory)}
    rows = [[name, bytes_text(count)] for name, count in parts.items()]
    rows += [["peak (from–to)", _range(memory)], ["reserved by the allocator", bytes_text(memory.reserved_bytes)]]
    way = "full fine-tuning" if memory.rank is None else f"LoRA, rank {memory.rank}"
    return Sheet(
        f"{way}: {memory.trainable_params:,} trainable parameters",
        (Heading("at the peak of a step", "left"), Heading("memory")),
        rows,
        [f"The peak is in {isolated(memory.peak_at)}."] if memory.peak_at else [],
    )


def estimate_table(estimate: ModelEstimate) -> RenderableType:
    """The ranks, in as many columns as the terminal has room for."""
    return WidestSheet(partial(rank_sheet, estimate), len(_WIDER_COLUMNS))


def methods_table(estimate: ModelEstimate) -> RenderableType:
    """The ways to train."""
    return shown(methods_sheet(estimate))


def layer_table(estimate: ModelEstimate) -> RenderableType:
    """The linear layers."""
    return terminal_table(layer_sheet(estimate))


def _caption(estimate: ModelEstimate) -> Iterator[str]:
    settings, targets = estimate.settings, estimate.target_modules
    pack = f", a pack of {settings['pack_size']}" if settings.get("pack_size") else ""
    quantized = "" if settings["quantize"] == "none" else f" in {settings['quantize']}"
    checkpointing = ", checkpointing" if settings["checkpointing"] else ""
    yield (
        f"LoRA on {isolated(targets if isinstance(targets, str) else ','.join(targets))}{pack}; a step of "
        f"{settings['batch_size']} × {settings['seq_len']:,} tokens, {settings['dtype']} base{quantized}, "
        f"{settings['adapter_dtype']} adapter, {settings['optimizer']}{checkpointing}."
    )
    known = "by a formula, which is rough" if settings["method"] == "formula" else "as torch counts it, allocated"
    yield (
        f"Peak memory: {known}; in brackets what it may be. A CUDA context of about "
        f"{bytes_text(estimate.cuda_context_bytes)} comes on top."
    )
    if (real := estimate.calibration) is not None:
        off = real.measured_bytes / real.estimated_bytes - 1
        yield (
            f"Corrected by a real step of rank {real.rank} on {real.device}: it took "
            f"{bytes_text(real.measured_bytes)}, {'as estimated' if off == 0 else f'{100 * off:+.2g} %'}."
        )
    largest_row = estimate.ranks[-1]
    if at := largest_row.cost.memory.peak_at:
        yield f"The peak of the largest rank is in {at}."
    share = f"At rank {largest_row.rank} the rank accounts for {share_text(largest_row.rank_share_of_peak)} of the peak"
    advice = "choose it for the task, and save memory with the batch size, checkpointing or a quantised base model"
    yield f"{share}: {advice}." if largest_row.rank_share_of_peak < _LITTLE else f"{share}."
    if estimate.gpu_bytes is not None and largest_row.cost.fits is not None:
        largest = estimate.largest_rank_that_fits
        yield f"Of the ranks asked for, {'none fits' if largest is None else f'the largest that fits is {largest}'}."


def _range(memory: MemoryEstimate) -> str:
    """The peak and what it may be; one unit where all three have the same.

    >>> from rankwise.records import MemoryParts
    >>> parts = MemoryParts(0, 0, 0, 0, 22_013_927_424, 0)
    >>> _range(MemoryEstimate(8, 0, parts, parts.total, 21_573_648_876, 23_703_579_525, parts.total, ""))
    '22 GB (21.6–23.7)'
    """
    peak, low, high = map(bytes_text, (memory.peak_bytes, memory.peak_bytes_low, memory.peak_bytes_high))
    one_unit = len({text.rpartition(" ")[2] for text in (peak, low, high)}) == 1
    return f"{peak} ({low.partition(' ')[0]}–{high.partition(' ')[0]})" if one_unit else f"{peak} ({low}–{high})"
