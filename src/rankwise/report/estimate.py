"""What each rank costs, on a terminal: the table of ranks, what fits a GPU, the linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankwise.records import ModelEstimate, RankEstimate, TrainingCost
from rankwise.report.text import bytes_text, share_text

_NAMES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}


@dataclass(frozen=True)
class _RankTable:
    """Laid out once the width is known: rich asks while it prints."""

    estimate: ModelEstimate

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        wide = options.max_width >= 90
        table = _table(Text(f"{self.estimate.model}: {self.estimate.total_params:,} parameters"))
        table.caption, table.caption_justify = Text(_caption(self.estimate)), "left"
        headers = ["rank", "trainable\nparams", "% of\nall", "optimizer\nstates", "peak memory\n(from–to)"]
        if wide:
            headers += ["rank's share\nof the peak", "model /\nadapter", "matrices /\nadapters"]
        if self.estimate.gpu_bytes is not None:
            headers += ["fits", "largest\nbatch"]
        for header in headers:
            table.add_column(header, justify="right")
        for row in self.estimate.ranks:
            table.add_row(*self._cells(row, wide=wide))
        table.add_row(*self._full(len(headers)))
        yield table

    def _cells(self, row: RankEstimate, *, wide: bool) -> list[str]:
        memory = row.cost.memory
        cells = [
            str(row.rank),
            f"{memory.trainable_params:,}",
            f"{row.trainable_percent:.3g}",
            bytes_text(memory.memory.optimizer_states),
            _peak(row.cost),
        ]
        if wide:
            cells += [share_text(row.rank_share_of_peak), f"{row.compression:,.0f}×", f"{row.matrix_compression:,.1f}×"]
        return [*cells, *_fits(row.cost)]

    def _full(self, columns: int) -> list[str]:
        full = self.estimate.full_fine_tuning
        states = bytes_text(full.memory.memory.optimizer_states)
        cells = ["full", f"{full.memory.trainable_params:,}", "100", states, _peak(full)]
        fits = _fits(full)
        return [*cells, *[""] * (columns - len(cells) - len(fits)), *fits]


def estimate_table(estimate: ModelEstimate) -> RenderableType:
    """A row for each rank and for full fine-tuning, and the notes."""
    return Group(_RankTable(estimate), *(Text(f"note: {note}") for note in estimate.notes))


def methods_table(estimate: ModelEstimate) -> RenderableType:
    """Full fine-tuning, LoRA and QLoRA on the GPU, and what the rank has to do with it."""
    table = _table(Text(f"on a GPU of {bytes_text(estimate.gpu_bytes)}"))
    for header in ("", "rank", "base weights", "activations", "peak memory\n(from–to)", "fits", "largest\nbatch"):
        table.add_column(header, justify="right" if header else "left")
    for cost in estimate.methods:
        parts = cost.memory.memory
        rank = "" if cost.memory.rank is None else str(cost.memory.rank)
        weights, activations = bytes_text(parts.base_weights), bytes_text(parts.activations)
        table.add_row(_NAMES[cost.method], rank, weights, activations, _peak(cost), *_fits(cost))
    largest = estimate.largest_rank_that_fits
    shares = [row.rank_share_of_peak for row in estimate.ranks]
    told = "no rank fits" if largest is None else f"the largest rank that fits is {largest}"
    return Group(
        table,
        Text(
            f"Of the ranks asked for, {told}. The rank accounts for {share_text(min(shares))} to "
            f"{share_text(max(shares))} of the peak: choose it for the task, and save memory with the batch size, "
            "checkpointing or a quantised base model."
        ),
    )


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


def _caption(estimate: ModelEstimate) -> str:
    settings = estimate.settings
    targets = estimate.target_modules
    checkpointing = ", checkpointing" if settings["checkpointing"] else ""
    quantized = "" if settings["quantize"] == "none" else f", base quantised to {settings['quantize']}"
    at = estimate.ranks[-1].cost.memory.peak_at
    lines = [
        f"LoRA on {targets if isinstance(targets, str) else ','.join(targets)}; a step of {settings['batch_size']} × "
        f"{settings['seq_len']:,} tokens, {settings['dtype']} base{quantized}, {settings['adapter_dtype']} adapter, "
        f"{settings['optimizer']}{checkpointing}.",
        f"Peak memory: allocated, and in brackets what it may be; a CUDA context of about "
        f"{bytes_text(estimate.cuda_context_bytes)} comes on top.",
    ]
    if at:
        lines.append(f"The peak of the largest rank is in {at}.")
    return "\n".join(lines)


def _peak(cost: TrainingCost) -> str:
    memory = cost.memory
    low, high = bytes_text(memory.peak_bytes_low), bytes_text(memory.peak_bytes_high)
    return f"{bytes_text(memory.peak_bytes)} ({low}–{high})"


def _fits(cost: TrainingCost) -> list[str]:
    if cost.fits is None:
        return []
    return ["yes" if cost.fits else "no", f"{cost.largest_batch:,}"]


def _table(title: Text) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
