"""A pack in progress on disk: safetensors, written beside and renamed.

Holds what a step reads and writes: every trial's row, AdamW's two moments, the losses so far. The
place in the data is the step's number, since batches are a function of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rankwise.durable import write_file
from rankwise.errors import RunError
from rankwise.lora.attach import Pack
from rankwise.records import Evaluation, Trial

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class PackProgress:
    """How far a pack has come. `train_nll` stays on the device, so that a step need not wait for it."""

    trials: tuple[Trial, ...]
    train_nll: Float32[Tensor, "steps trials"]
    step: int = 0
    evaluations: list[tuple[Evaluation, ...]] = field(default_factory=list)

    @classmethod
    def start(cls, trials: tuple[Trial, ...], steps: int, device: torch.device) -> PackProgress:
        return cls(trials, torch.full((steps, len(trials)), torch.nan, device=device))


def write_checkpoint(path: Path, pack: Pack, optimizer: torch.optim.Optimizer, progress: PackProgress) -> None:
    """Save a pack between two steps."""
    tensors = {"train_nll": progress.train_nll[: progress.step].cpu()}
    for index, group in enumerate(optimizer.param_groups):
        (row,) = group["params"]
        tensors[f"{index}.row"] = row.detach().cpu()
        for moment in _MOMENTS:
            tensors[f"{index}.{moment}"] = optimizer.state[row][moment].cpu()
    metadata = {
        "trials": json.dumps([trial.id for trial in progress.trials]),
        "step": str(progress.step),
        "evaluations": json.dumps([[asdict(one) for one in evaluation] for evaluation in progress.evaluations]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Rows of equal rank share one storage, which safetensors refuses.
    contiguous = {name: tensor.clone() for name, tensor in tensors.items()}
    write_file(path, lambda beside: save_file(contiguous, beside, metadata))


def read_checkpoint(path: Path, pack: Pack, optimizer: torch.optim.Optimizer, steps: int) -> PackProgress:
    """Put a pack and its optimiser back to where `write_checkpoint` saw them.

    Raises `RunError` where the file is damaged or belongs to other trials.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        trials, step = json.loads(metadata["trials"]), int(metadata["step"])
        evaluations = [tuple(Evaluation(**one) for one in e) for e in json.loads(metadata["evaluations"])]
        if trials != [trial.id for trial in pack.trials]:
            raise RunError(f"checkpoint {path} belongs to other trials; remove it to train this pack from its start")
        progress = PackProgress.start(pack.trials, steps, pack.base.device)
        progress.train_nll[:step] = tensors["train_nll"].to(pack.base.device)
        progress.step, progress.evaluations = step, evaluations
        with torch.no_grad():
            for index, group in enumerate(optimizer.param_groups):
                (row,) = group["params"]
                row.copy_(tensors[f"{index}.row"])
                optimizer.state[row] = {
                    "step": torch.tensor(float(step), device=row.device),
                    **{moment: tensors[f"{index}.{moment}"].to(row.device) for moment in _MOMENTS},
                }
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise RunError(
            f"checkpoint {path} is damaged ({' '.join(str(error).split())[:200]}); "
            "remove it to train this pack from its start"
        ) from error
    return progress
