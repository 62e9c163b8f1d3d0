"""What a user of PEFT or transformers would write: AdamW, a schedule, one trial. The oracle of every training."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import TypeVar

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn

from rankwise.lora.attach import State
from rankwise.records import Trial
from rankwise.tasks.task import Batch, Task, collate, training_rows
from rankwise.train.settings import TrainingSettings

Model = TypeVar("Model", bound=nn.Module)


def plain_peft_loop(
    model: PeftModel,
    start: State,
    task: Task,
    trial: Trial,
    settings: TrainingSettings,
    loss_of: Callable[[PeftModel, Batch], Tensor],
) -> list[float]:
    """The loss of each step of a model that PEFT has adapted, from a trial's `start` on."""
    for name, value in start.items():
        inside, _, kind = name.rpartition(".")
        own = f"{inside}.default.{kind}" if "lora_" in name else f"{inside}.modules_to_save.default.{kind}"
        model.get_parameter(f"base_model.model.{own}").data.copy_(value)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return plain_loop(model, trained, task, trial, settings, loss_of)


def plain_loop(
    model: Model,
    trained: list[nn.Parameter],
    task: Task,
    trial: Trial,
    settings: TrainingSettings,
    loss_of: Callable[[Model, Batch], Tensor],
) -> list[float]:
    """The same of any model and what is trained of it."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(trained, lr=trial.learning_rate, weight_decay=0.0)
    warmup = math.ceil(settings.steps * settings.warmup_ratio)
    schedule = transformers.get_scheduler(settings.schedule, optimizer, warmup, settings.steps)
    losses = []
    rows = training_rows(task.train.input_ids.lengths, settings.batch_size, trial.seed)
    for batch_rows in islice(rows, settings.steps):
        loss = loss_of(model, collate(task.train, batch_rows, pad_token_id=0).to(trained[0].device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
