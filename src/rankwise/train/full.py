"""Full fine-tuning: all weights of a copy of the base model, on the batches that the adapters see.

The upper end of a comparison: what the task gives where nothing is frozen. Weights, gradients and AdamW's moments are
float32, products are in the base model's dtype.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from rankwise.base.model import DTYPES, BaseModel
from rankwise.lora.attach import initial_heads
from rankwise.records import Evaluation, Scores, TrialStatus
from rankwise.tasks.task import Task, pack_rows
from rankwise.train.checkpoint import MOMENTS, CheckpointPace, read_states, write_states
from rankwise.train.cost import PeakMemory
from rankwise.train.loop import backward, checkpointed_activations, evaluate, score, trial_status
from rankwise.train.settings import TrainingSettings


@dataclass(frozen=True)
class FineTuned:
    """What one full fine-tuning leaves: its curve, its scores of the test and the retained texts, and its cost.

    `seconds` is the median of a step; `peak_bytes` is of the whole training, None where nothing counts.
    """

    status: TrialStatus
    train_nll: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]
    test: Scores
    retained: Scores | None
    params: int
    seconds: float
    peak_bytes: int | None


@dataclass
class _Progress:
    """How far a fine-tuning has come, by what it leaves in the end."""

    train_nll: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def step(self) -> int:
        return len(self.train_nll)

    def saw(self, peak_bytes: int | None) -> None:
        if peak_bytes is not None:
            self.peak_bytes = max(peak_bytes, self.peak_bytes or 0)


def fine_tune(
    base: BaseModel,
    task: Task,
    learning_rate: float,
    seed: int,
    settings: TrainingSettings,
    observe: Callable[[int], None] = lambda step: None,
    checkpoint: Path | None = None,
) -> FineTuned:
    """Train all weights with AdamW, without weight decay as the adapters are; the base model is left as it is.

    `checkpoint` is a file: where it exists, training goes on from it, with the same numbers as if it had never stopped.
    `observe` is told of a step after its checkpoint is written.
    """
    meter = PeakMemory(base)
    model = copy.deepcopy(base.model).float().requires_grad_(True)
    for name, value in initial_heads(base, seed).items():
        model.get_parameter(name).data.copy_(value)
    tuned = replace(base, model=model)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    progress = _Progress()
    if checkpoint is not None and checkpoint.exists():
        progress = _read(checkpoint, model, optimizer)
        meter.restart()
    batches = pack_rows(task.train.input_ids.lengths, settings.batch_size, [seed])
    batches = islice(batches, progress.step * settings.accumulation, None)
    pace = CheckpointPace()
    with (
        checkpointed_activations(tuned, settings),
        torch.autocast(
            base.device.type, dtype=DTYPES[base.dtype], enabled=base.dtype != "float32", cache_enabled=False
        ),
    ):
        for number in range(progress.step, settings.steps):
            started = time.perf_counter()
            rows = list(islice(batches, settings.accumulation))
            progress.train_nll.append(float(backward(tuned, task, rows)))
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * settings.rate_factor(number)
            optimizer.step()
            optimizer.zero_grad()
            progress.seconds.append(time.perf_counter() - started)
            if progress.step in settings.evaluation_steps:
                progress.evaluations += evaluate(tuned, 1, task, progress.step)
            progress.saw(meter.bytes())
            if checkpoint is not None and pace.due():
                with pace.writing():
                    _write(checkpoint, model, optimizer, progress)
            observe(progress.step)
        test, retained = (
            None if split is None else score(tuned, 1, task, split) for split in (task.test, task.retained)
        )
    assert test is not None
    return FineTuned(
        trial_status(progress.train_nll, progress.evaluations, settings.steps, task.outcomes),
        tuple(progress.train_nll),
        tuple(progress.evaluations),
        test,
        retained,
        sum(parameter.numel() for parameter in parameters),
        statistics.median(progress.seconds),
        # The base model lies beside its copy, and would not have to.
        None if progress.peak_bytes is None else progress.peak_bytes - base.bytes,
    )


def _write(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: _Progress) -> None:
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        # What no loss depends on has no moments.
        tensors |= {f"{of}.{name}": value for of, value in optimizer.state[parameter].items() if of in MOMENTS}
    write_states(path, asdict(progress), {name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


@torch.no_grad()
def _read(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> _Progress:
    """Put the model and its optimiser to where the checkpoint was written."""
    with read_states(path) as (metadata, tensors):
        evaluations = [Evaluation(**evaluation) for evaluation in metadata.pop("evaluations")]
        progress = _Progress(**metadata, evaluations=evaluations)
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            moments = {of: tensors[f"{of}.{name}"].to(parameter.device) for of in MOMENTS if f"{of}.{name}" in tensors}
            if moments:
                step = torch.tensor(float(progress.step), device=parameter.device)
                optimizer.state[parameter] = {"step": step, **moments}
        return progress
