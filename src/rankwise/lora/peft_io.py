"""Adapters in PEFT's format: what a trial leaves for others to load, and what others left for a trial.

A directory of `adapter_config.json` and `adapter_model.safetensors`. The configuration is PEFT's own
class, so that what it writes is what PEFT reads. Target modules are written out by their whole names:
a suffix or a regular expression could match other modules in another version of the model's code.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer, head_modules, is_named, within
from rankwise.base.source import EMBEDDED, EMBEDDED_HUB_ID, locate
from rankwise.durable import write_directory
from rankwise.errors import UserError
from rankwise.lora.attach import State, factor_names
from rankwise.lora.peft_files import PREFIX, foreign_settings, missing_weights, open_weights, read_settings
from rankwise.records import Trial

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as it was read: `state` is what `Pack.load` takes."""

    rank: int
    alpha: float
    use_rslora: bool
    state: State


def write_adapter(directory: Path, base: BaseModel, trial: Trial, state: State, targets: Sequence[LinearLayer]) -> None:
    """Write a trial's adapter and heads as a directory that PEFT loads; one that is there is replaced.

    A hub model is named with its commit; a local one by its path, which another machine lacks. The base
    model must not have a pack attached. Raises `ValueError` where the tensors are not of the trial's rank.
    """
    wrong = list(_differences(_shapes_of(state), _expected_shapes(base, trial.rank, targets)))
    if wrong:
        raise ValueError(f"this is no adapter of rank {trial.rank}: {'; '.join(wrong)}")
    config = _config(base, trial, [target.name for target in targets])
    tensors = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in state.items()}

    def write(beside: Path) -> None:
        config.save_pretrained(beside)
        save_file(tensors, beside / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})

    write_directory(directory, write)


def misread_targets(base: BaseModel, targets: Sequence[LinearLayer]) -> dict[str, str]:
    """Why PEFT would not put adapters of these layers where they were trained, by the layers' names.

    It is tried on a model of the same shapes. Of mixtures PEFT takes dense layers that are called as experts once were
    for the experts; within models like Mamba it refuses some.
    """
    names = [target.name for target in targets]
    misread: dict[str, str] = {}
    try:
        adapted = _adapted_by_peft(base, names)
    except ValueError:
        for end in {name.rpartition(".")[2] for name in names}:
            alike = [name for name in names if is_named(name, end)]
            try:
                _adapted_by_peft(base, alike)
            except ValueError:
                misread |= dict.fromkeys(alike, "PEFT refuses it")
        left = [name for name in names if name not in misread]
        adapted = _adapted_by_peft(base, left) if left else set()
    return {name: misread.get(name, "PEFT would take it for experts") for name in names if name not in adapted}


def _adapted_by_peft(base: BaseModel, names: Sequence[str]) -> set[str]:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of what it made of the names
        twin = type(base.model)(copy.deepcopy(base.model.config))
        inject_adapter_in_model(LoraConfig(r=1, target_modules=list(names)), twin)
    return {name for name, module in twin.named_modules() if isinstance(module, LoraLayer)}


def read_adapter(directory: Path, base: BaseModel, targets: Sequence[LinearLayer]) -> SavedAdapter:
    """Read an adapter of this base model with these target modules, written here or by PEFT.

    Raises one `UserError` that lists everything that cannot be taken over.
    """
    settings = read_settings(directory)
    problems = list(foreign_settings(settings))
    rank, alpha = settings["r"], settings["lora_alpha"]
    tensors: State = {}
    problems += missing_weights(directory)
    if (file := directory / SAFETENSORS_WEIGHTS_NAME).is_file():
        tensors = _read_tensors(file)
        problems += _differences(_shapes_of(tensors), _expected_shapes(base, rank, targets))
    if problems:
        shown = "; ".join(" ".join(problem.split())[:300] for problem in problems[:6])
        raise UserError(f"adapter {directory} cannot be used with {base.name}: {shown}")
    return SavedAdapter(rank, float(alpha), bool(settings.get("use_rslora")), tensors)


def _config(base: BaseModel, trial: Trial, targets: Sequence[str]) -> LoraConfig:
    config = LoraConfig(
        task_type="CAUSAL_LM" if base.causal else "SEQ_CLS",
        inference_mode=True,
        base_model_name_or_path=_published_name(base),
        revision=None if base.revision.startswith("sha256:") else base.revision,
        r=trial.rank,
        lora_alpha=int(trial.alpha) if trial.alpha == int(trial.alpha) else trial.alpha,
        use_rslora=trial.use_rslora,
        fan_in_fan_out=any(isinstance(base.model.get_submodule(target), Conv1D) for target in targets),
        modules_to_save=_modules_to_save(base) or None,
    )
    # PEFT also adapts modules whose names end in a target's; it would make sets of both, of no fixed order.
    longer = [name for name, _ in base.model.named_modules() if any(_ends_in(name, target) for target in targets)]
    config.target_modules = list(targets)
    config.exclude_modules = [name for name in longer if name not in targets] or None
    return config


def _ends_in(name: str, target: str) -> bool:
    return name != target and is_named(name, target)


def _published_name(base: BaseModel) -> str:
    if base.name == EMBEDDED:
        return EMBEDDED_HUB_ID
    located = locate(base.name)
    return str(Path(located).resolve()) if Path(located).is_dir() else located


def _modules_to_save(base: BaseModel) -> list[str]:
    # PEFT always adds `classifier` and `score`. RoBERTa's classifier.dense beside them would be wrapped twice.
    heads = head_modules(base.model)
    whole = (next((head for head in heads if within(name, [head])), name) for name in base.trained_modules)
    return list(dict.fromkeys(whole))


def _expected_shapes(base: BaseModel, rank: int, targets: Sequence[LinearLayer]) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {}
    for target in targets:
        name_a, name_b = factor_names(target.name)
        shapes |= {name_a: (rank, target.d_in), name_b: (target.d_out, rank)}
    return shapes | dict(base.trained_shapes)


def _shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _differences(found: Shapes, expected: Shapes) -> Iterator[str]:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    other = [name for name in expected if name in found and found[name] != expected[name]]
    if missing:
        yield f"{len(missing)} tensors are missing ({missing[0]} …)"
    if extra:
        yield f"{len(extra)} tensors have no place ({extra[0]} …)"
    if other:
        yield f"{len(other)} tensors have another shape ({other[0]}: {found[other[0]]}, not {expected[other[0]]} …)"


def _read_tensors(file: Path) -> State:
    with open_weights(file) as weights:
        return {name.removeprefix(PREFIX): weights.get_tensor(name).float() for name in weights.keys()}  # noqa: SIM118
