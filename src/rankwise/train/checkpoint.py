"""Training states on disk: safetensors, written beside and renamed.

A pack's file holds some trials that stand at the same step, each with what a step reads and writes: its row,
AdamW's two moments, the losses so far. The place in the data is the step's number, since batches are a
function of it. Nothing in a trial's state knows its pack, so trials of several packs go on in a new one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rankwise.durable import digest, write_file
from rankwise.errors import RunError, reason_of
from rankwise.lora.attach import Pack
from rankwise.records import Evaluation, Trial

MOMENTS = ("exp_avg", "exp_avg_sq")
_TENSORS = ("row", *MOMENTS, "train_nll")
_SECONDS = 20.0  # at most this much work is done again after a kill, unless writing takes long
_WRITING_SHARE = 0.05  # of the time, at most: a large pack's file on a slow disk takes longer than its steps


class CheckpointPace:
    """When a training writes its next checkpoint."""

    def __init__(self) -> None:
        self._written, self._writing = time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self._written > max(_SECONDS, self._writing / _WRITING_SHARE)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around the writing of one."""
        started = time.monotonic()
        yield
        self._written = time.monotonic()
        self._writing = self._written - started


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


@dataclass(frozen=True)
class _TrialState:
    """One trial between two steps. `tensors` are on the CPU, by the names of `_TENSORS`."""

    trial: str
    step: int
    evaluations: tuple[Evaluation, ...]
    tensors: Mapping[str, Tensor]


def write_checkpoint(path: Path, pack: Pack, optimizer: torch.optim.Optimizer, progress: PackProgress) -> None:
    """Save a pack between two steps."""
    states = []
    for index, (trial, group) in enumerate(zip(pack.trials, optimizer.param_groups, strict=True)):
        (row,) = group["params"]
        tensors = {"row": row.detach(), "train_nll": progress.train_nll[: progress.step, index]}
        tensors |= {moment: optimizer.state[row][moment] for moment in MOMENTS}
        evaluations = tuple(evaluation[index] for evaluation in progress.evaluations)
        states.append(_TrialState(trial.id, progress.step, evaluations, tensors))
    _write(path, states)


def read_checkpoint(paths: Sequence[Path], pack: Pack, optimizer: torch.optim.Optimizer, steps: int) -> PackProgress:
    """Put a pack and its optimiser to where its trials stand: in the one file of a pack, or a file for each trial.

    Raises `RunError` where a file is damaged, or where they belong to other trials.
    """
    states = {state.trial: state for path in paths for state in _read(path)}
    where = paths[0] if len(paths) == 1 else paths[0].parent
    at = {state.step for state in states.values()}
    if states.keys() != {trial.id for trial in pack.trials} or len(at) > 1:
        raise RunError(
            f"checkpoint {where} belongs to other trials or another step; remove it to train this pack from its start"
        )
    ordered = [states[trial.id] for trial in pack.trials]
    progress = PackProgress.start(pack.trials, steps, pack.base.device)
    (progress.step,) = at
    progress.evaluations = list(zip(*(state.evaluations for state in ordered), strict=True))
    for index, (state, group) in enumerate(zip(ordered, optimizer.param_groups, strict=True)):
        (row,) = group["params"]
        progress.train_nll[: state.step, index] = state.tensors["train_nll"].to(row.device)
        with torch.no_grad():
            row.copy_(state.tensors["row"])
        optimizer.state[row] = {
            "step": torch.tensor(float(state.step), device=row.device),
            **{moment: state.tensors[moment].to(row.device) for moment in MOMENTS},
        }
    pack.refresh()
    return progress


def split_checkpoint(path: Path, parts: Mapping[str, Path]) -> None:
    """Write the states of some trials of a pack (by their ids) to a file each."""
    for state in _read(path):
        if state.trial in parts:
            _write(parts[state.trial], [state])


def _write(path: Path, states: Sequence[_TrialState]) -> None:
    metadata = [
        {"trial": state.trial, "step": state.step, "evaluations": [asdict(one) for one in state.evaluations]}
        for state in states
    ]
    # Rows of equal rank share one storage, which safetensors refuses: each is copied.
    tensors = {
        f"{index}.{name}": state.tensors[name].to("cpu", copy=True).contiguous()
        for index, state in enumerate(states)
        for name in _TENSORS
    }
    write_states(path, metadata, tensors)


def _read(path: Path) -> list[_TrialState]:
    with read_states(path) as (metadata, tensors):
        return [
            _TrialState(
                state["trial"],
                state["step"],
                tuple(Evaluation(**evaluation) for evaluation in state["evaluations"]),
                {name: tensors[f"{index}.{name}"] for name in _TENSORS},
            )
            for index, state in enumerate(metadata)
        ]


def write_states(path: Path, metadata: object, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors on the CPU, and what JSON can say beside them, with a digest of both."""
    text = json.dumps(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"states": text, "sha256": _digest(text, tensors)}
    write_file(path, lambda beside: save_file(dict(tensors), beside, about))


@contextmanager
def read_states(path: Path) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """What `write_states` wrote, to be taken apart within the block.

    Raises `RunError` where the file is damaged, or holds something else than what the block takes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text, written = file.metadata()["states"], file.metadata()["sha256"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(text, tensors) != written:
            raise ValueError("its bytes are not those that were written")
        yield json.loads(text), tensors
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"checkpoint {path} is damaged ({reason_of(error)}); remove it to train what it is of from its start"
        ) from error


def _digest(states: str, tensors: Mapping[str, Tensor]) -> str:
    return digest({"states": states.encode()} | {name: tensor.numpy().data for name, tensor in tensors.items()})
