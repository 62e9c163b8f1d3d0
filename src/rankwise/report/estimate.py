"""What each rank costs, on a terminal: the table of ranks, what fits a GPU, the linear layers.

Texts that come from models and options are passed to rich as `Text`, never as markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rankwise.records import ModelEstimate, RankEstimate, TrainingCost
from rankwise.report.text import bytes_text, share_text

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
    _of_cost("peak memory\n(from–to)", lambda cost: _peak(cost)),
)
_GPU_COLUMNS = (
    _of_cost("fits", lambda cost: "yes" if cost.fits else "no"),
    _of_cost("largest\nbatch", lambda cost: f"{cost.largest_batch:,}"),
)
# In this order, as many as the terminal has room for.
_WIDER_COLUMNS = (
    _Column("rank's\nshare", lambda row: share_text(row.rank_share_of_peak)),
    _Column("adapter\nfile", lambda row: bytes_text(row.adapter_file_bytes)),
    _Column("model /\nadapter", lambda row: f"{row.compression:,.0f}×"),
    _Column("matrices /\nadapters", lambda row: f"{row.matrix_compression:,.1f}×"),
)


@dataclass(frozen=True)
class _RankTable:
    """Laid out once the width is known: rich asks while it prints."""

    estimate: ModelEstimate

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        table = self._table(0)
        for wider in range(1, len(_WIDER_COLUMNS) + 1):
            more = self._table(wider)
            if Measurement.get(console, options.update_width(1000), more).maximum <= options.max_width:
                table = more
        yield table

    def _table(self, wider: int) -> Table:
        known = self.estimate.gpu_bytes is not None
        columns = (*_COLUMNS, *_WIDER_COLUMNS[:wider], *(_GPU_COLUMNS if known else ()))
        table = _table(Text(f"{self.estimate.model}: {self.estimate.total_params:,} parameters"))
        for column in columns:
            table.add_column(column.header, justify="right")
        for row in self.estimate.ranks:
            table.add_row(*(column.of_rank(row) for column in columns))
        table.add_row(*(column.of_full(self.estimate.full_fine_tuning) for column in columns))
        return table


def estimate_table(estimate: ModelEstimate) -> RenderableType:
    """A row for each rank and for full fine-tuning, what the figures are, and the notes."""
    notes = (Text(f"note: {note}") for note in estimate.notes)
    return Group(_RankTable(estimate), *(Text(line) for line in _caption(estimate)), *notes)


def methods_table(estimate: ModelEstimate) -> RenderableType:
    """Full fine-tuning, LoRA and QLoRA on the GPU."""
    table = _table(Text(f"on a GPU of {bytes_text(estimate.gpu_bytes)}"))
    for header in ("", "base\nweights", "activations", "peak memory\n(from–to)", "fits", "largest\nbatch"):
        table.add_column(header, justify="right" if header else "left")
    for cost in estimate.methods:
        parts = cost.memory.memory
        name = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[cost.method]
        rank = "" if cost.memory.rank is None else f", rank {cost.memory.rank}"
        gpu = (column.of_full(cost) for column in _GPU_COLUMNS)
        table.add_row(name + rank, bytes_text(parts.base_weights), bytes_text(parts.activations), _peak(cost), *gpu)
    quantized = str(estimate.settings["quantize"])
    return Group(table, Text(f"QLoRA: the base model in {'nf4' if quantized == 'none' else quantized}."))


def layer_table(estimate: ModelEstimate) -> RenderableType:
    """The linear layers by name and shape, and which are adapted."""
    table = _table(Text("linear layers"))
    for header in ("name", "d_in", "d_out", "layers", "experts", "adapted"):
        table.add_column(header, justify="left" if header in ("name", "adapted") else "right")
    for group in estimate.linear_layers:
        experts = "" if group.experts == 1 else str(group.experts)
        adapted = "yes" if group.adapted else ""
        table.add_row(Text(group.name), f"{group.d_in:,}", f"{group.d_out:,}", str(group.count), experts, adapted)
    return table


def _caption(estimate: ModelEstimate) -> Iterator[str]:
    settings, targets = estimate.settings, estimate.target_modules
    pack = f", a pack of {settings['pack_size']}" if settings.get("pack_size") else ""
    quantized = "" if settings["quantize"] == "none" else f" in {settings['quantize']}"
    checkpointing = ", checkpointing" if settings["checkpointing"] else ""
    yield (
        f"LoRA on {targets if isinstance(targets, str) else ','.join(targets)}{pack}; a step of "
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
    if estimate.gpu_bytes is not None:
        largest = estimate.largest_rank_that_fits
        yield f"Of the ranks asked for, {'none fits' if largest is None else f'the largest that fits is {largest}'}."


def _peak(cost: TrainingCost) -> str:
    """One unit where all three have the same.

    >>> from rankwise.records import MemoryEstimate, MemoryParts
    >>> parts = MemoryParts(0, 0, 0, 0, 22_013_927_424, 0)
    >>> memory = MemoryEstimate(8, 0, parts, parts.total, 21_573_648_876, 23_703_579_525, parts.total, "")
    >>> _peak(TrainingCost("lora", memory, None, None))
    '22 GB (21.6–23.7)'
    """
    memory = cost.memory
    peak, low, high = map(bytes_text, (memory.peak_bytes, memory.peak_bytes_low, memory.peak_bytes_high))
    one_unit = len({text.rpartition(" ")[2] for text in (peak, low, high)}) == 1
    return f"{peak} ({low.partition(' ')[0]}–{high.partition(' ')[0]})" if one_unit else f"{peak} ({low}–{high})"


def _table(title: Text) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
