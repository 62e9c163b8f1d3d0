"""What each rank of a model costs: parameters, the memory of a training step, what fits a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rankwise.base.quantize import can_quantize
from rankwise.errors import UserError
from rankwise.memory.estimated import EstimatedModel
from rankwise.memory.parameters import adapter_file_bytes, check_ranks
from rankwise.memory.settings import Method, StepSettings
from rankwise.records import MemoryEstimate, ModelEstimate, RankEstimate, TrainingCost

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What a process holds on a device before it allocates anything: the driver's context and the kernels. It
# differs between devices and versions of CUDA; nvidia-smi shows it.
CUDA_CONTEXT_BYTES = 600 * 2**20
_MOST_ROWS = 2**16


def estimate_training_memory(
    model: str | Path | PreTrainedConfig,
    rank: int | None,
    target_modules: str | Sequence[str] = "all-linear",
    settings: StepSettings | None = None,
    *,
    method: Method = "simulate",
) -> MemoryEstimate:
    """The memory of one training step of a LoRA adapter of this rank, trained by PEFT; None is full fine-tuning.

    A step on fake tensors is taken; nothing is downloaded but a `config.json` that the catalogue does not have.
    `formula` computes it in closed form instead, at once and roughly.

    Raises `UserError` where the model cannot be built, the targets match nothing, no adapted layer has that rank,
    or the sequence is longer than the model has positions for.
    """
    subject = EstimatedModel(model, target_modules, method)
    if rank is not None:
        check_ranks([rank], subject.adapted)
    return subject.memory(rank, subject.as_stored(settings or StepSettings()))


def estimate_ranks(
    model: str | Path | PreTrainedConfig,
    ranks: Sequence[int],
    target_modules: str | Sequence[str] = "all-linear",
    settings: StepSettings | None = None,
    *,
    gpu_bytes: int | None = None,
    method: Method = "simulate",
    pack_size: int = 0,
    calibrate: bool = False,
) -> ModelEstimate:
    """Each rank's cost beside that of full fine-tuning; with the bytes of a GPU also what fits there.

    With a `pack_size` the memory is that of so many adapters of a rank, trained together as `rankwise compare` does;
    else of one adapter, trained by PEFT. `calibrate` takes two real
    steps of the largest rank on this machine's device, with weights of zeros, and corrects every estimate by
    what they took.
    """
    if calibrate and pack_size:
        raise UserError("calibrate: it measures the step of PEFT's adapter; leave out --engine pack")
    started = time.perf_counter()
    settings = settings or StepSettings()
    ranks = sorted(set(ranks))
    subject = EstimatedModel(model, target_modules, method, pack_size)
    notes = check_ranks(ranks, subject.adapted)
    settings = subject.as_stored(settings)
    if calibrate:
        from rankwise.memory.calibrate import calibration  # it takes real steps, for which it needs torch

        subject.calibration = calibration(subject, ranks[-1], settings)
    # Full fine-tuning first: its step shows which dimensions are not the rank's.
    full = _cost(subject, None, settings, gpu_bytes)
    rows = tuple(_row(subject, rank, ranks, settings, gpu_bytes) for rank in ranks)
    methods: tuple[TrainingCost, ...] = ()
    if gpu_bytes is not None and not pack_size:
        lora = replace(settings, quantize="none")
        qlora = replace(settings, quantize="nf4") if settings.quantize == "none" else settings
        methods = (full, _cost(subject, ranks[0], lora, gpu_bytes))
        if can_quantize():
            methods += (_cost(subject, ranks[0], qlora, gpu_bytes),)
        else:
            notes += ("QLoRA is left out: it needs bitsandbytes, pip install 'rankwise[quant]'",)
    if subject.is_too_low:
        notes += (
            "the formula does not know what a mixture's experts keep: its peaks are too low, and it does not say what "
            "fits",
        )
    return ModelEstimate(
        model=str(model) if isinstance(model, str | Path) else model.model_type,
        total_params=subject.total_params,
        settings={"method": subject.method, "pack_size": pack_size or None}
        | asdict(settings)
        | {"padding": settings.padded},
        target_modules=target_modules if isinstance(target_modules, str) else tuple(target_modules),
        linear_layers=subject.groups(),
        full_fine_tuning=full,
        ranks=rows,
        methods=methods,
        gpu_bytes=gpu_bytes,
        cuda_context_bytes=CUDA_CONTEXT_BYTES,
        calibration=subject.calibration,
        largest_rank_that_fits=max((row.rank for row in rows if row.cost.fits), default=None),
        seconds=time.perf_counter() - started,
        notes=(*notes, *subject.notes),
    )


def _row(
    subject: EstimatedModel, rank: int, ranks: Sequence[int], settings: StepSettings, gpu_bytes: int | None
) -> RankEstimate:
    cost = _cost(subject, rank, settings, gpu_bytes)
    trainable = cost.memory.trainable_params
    return RankEstimate(
        rank=rank,
        alpha=float(rank),
        trainable_percent=100 * trainable / (subject.total_params + trainable),
        compression=subject.total_params / trainable,
        matrix_compression=sum(layer.weights for layer in subject.adapted)
        / sum(layer.lora_params(rank) for layer in subject.adapted),
        adapter_file_bytes=adapter_file_bytes(subject.outline, subject.adapted, subject.trained, rank, settings),
        rank_share_of_peak=_rank_share(subject, rank, ranks, settings),
        cost=cost,
    )


def _rank_share(subject: EstimatedModel, rank: int, ranks: Sequence[int], settings: StepSettings) -> float:
    # The peak is a straight line in the rank as long as it occurs at the same place.
    other = next((one for one in ranks if one != rank), 2 * rank)
    peak, other_peak = (subject.memory(one, settings).peak_bytes for one in (rank, other))
    return max(0.0, rank * (peak - other_peak) / (rank - other) / peak)


def _cost(subject: EstimatedModel, rank: int | None, settings: StepSettings, gpu_bytes: int | None) -> TrainingCost:
    method: Literal["full", "lora", "qlora"] = (
        "full" if rank is None else "lora" if settings.quantize == "none" else "qlora"
    )
    memory = subject.memory(rank, settings)
    if gpu_bytes is None or subject.is_too_low:
        return TrainingCost(method, memory, None, None)
    room = gpu_bytes - CUDA_CONTEXT_BYTES

    def high(batch_size: int) -> int:
        return subject.memory(rank, replace(settings, batch_size=batch_size)).peak_bytes_high

    return TrainingCost(method, memory, memory.peak_bytes_high <= room, largest_batch(high, room, settings.batch_size))


def largest_batch(peak: Callable[[int], int], room: int, start: int) -> int:
    """The largest batch size whose `peak` is at most `room` bytes; 0 where that of 1 is more.

    The peak grows with the batch, and from 2 on nearly in a straight line. Each guess is on the line through the two
    before it, beginning at `start`; every third is the middle, because a small model's peak may bend.

    >>> largest_batch(lambda batch: 100 + 30 * batch, room=1000, start=4)
    30
    """
    fits, too_large = 0, _MOST_ROWS + 1
    batch = before = max(2, start)
    value_before = peak(before)
    for middle in cycle((False, False, True)):
        value = peak(batch)
        if value <= room:
            fits = batch
        else:
            too_large = batch
        if too_large - fits == 1:
            break
        slope = (value - value_before) / (batch - before) if batch != before else peak(batch + 1) - value
        guess = (fits + too_large) // 2 if middle else batch + math.floor((room - value) / max(1, slope))
        before, value_before = batch, value
        batch = min(max(guess, fits + 1), too_large - 1)
    return fits
