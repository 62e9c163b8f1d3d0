"""Full fine-tuning: all weights of a copy of the base model, on the batches that the adapters see.

The upper end of a comparison: what the task gives where nothing is frozen. Weights, gradients and AdamW's moments are
float32, products are in the base model's dtype.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import nn

from rankwise.base.model import DTYPES, BaseModel
from rankwise.lora.attach import initial_heads
from rankwise.records import Evaluation, Scores, TrialStatus
from rankwise.tasks.task import Task, pack_rows
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


def fine_tune(
    base: BaseModel,
    task: Task,
    learning_rate: float,
    seed: int,
    settings: TrainingSettings,
    observe: Callable[[int], None] = lambda step: None,
) -> FineTuned:
    """Train all weights with AdamW, without weight decay as the adapters are; the base model is left as it is."""
    meter = PeakMemory(base)
    model = copy.deepcopy(base.model).float().requires_grad_(True)
    for name, value in initial_heads(base, seed).items():
        model.get_parameter(name).data.copy_(value)
    tuned = replace(base, model=model)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    batches = pack_rows(task.train.input_ids.lengths, settings.batch_size, [seed])
    train_nll: list[float] = []
    evaluations: list[Evaluation] = []
    seconds: list[float] = []
    with (
        checkpointed_activations(tuned, settings),
        torch.autocast(
            base.device.type, dtype=DTYPES[base.dtype], enabled=base.dtype != "float32", cache_enabled=False
        ),
    ):
        for number in range(settings.steps):
            started = time.perf_counter()
            rows = list(islice(batches, settings.accumulation))
            train_nll.append(float(backward(tuned, task, rows)))
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * settings.rate_factor(number)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - started)
            if number + 1 in settings.evaluation_steps:
                evaluations += evaluate(tuned, 1, task, number + 1)
            observe(number + 1)
        peak = meter.bytes()
        test, retained = (
            None if split is None else score(tuned, 1, task, split) for split in (task.test, task.retained)
        )
    assert test is not None
    return FineTuned(
        trial_status(train_nll, evaluations, settings.steps, task.outcomes),
        tuple(train_nll),
        tuple(evaluations),
        test,
        retained,
        sum(parameter.numel() for parameter in parameters),
        statistics.median(seconds),
        # The base model lies beside its copy, and would not have to.
        None if peak is None else peak - base.bytes,
    )
