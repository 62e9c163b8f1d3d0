"""PEFT's directories without their base model: the settings, which modules are adapted, and the tensors.

Tensors are read one module at a time, so that an adapter may be larger than memory allows twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from rankwise.errors import UserError, reason_of
from rankwise.patterns import check_pattern
from rankwise.records import scaling_of

PREFIX = "base_model.model."

# What may differ from LoraConfig's defaults: it is read here, shows in the tensors, or is over once training is.
UNDERSTOOD = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "fan_in_fan_out",
        "lora_dropout",
        "init_lora_weights",
        "eva_config",
        "inference_mode",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
    }
)
_ALONE = UNDERSTOOD | {"rank_pattern", "alpha_pattern", "trainable_token_indices"}
# The others (PiSSA, OLoRA, …) take their start out of the base weights, which are then no longer the base model's.
# EVA takes A's out of activations.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")
_LARGEST = 1e30
_LONGEST_NAME = 300
_FACTOR = re.compile(r"(.+)\.lora_(?:(A|B)\.weight|embedding_(A|B))")


@dataclass(frozen=True)
class AdaptedModule:
    """One module's A (rank, d_in) and B (d_out, rank), by the names of their tensors.

    An embedding counts as a map from its vocabulary.
    """

    name: str
    tensor_a: str
    tensor_b: str
    d_in: int
    d_out: int
    rank: int
    alpha: float
    scaling: float


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA adapter on disk. `others` are tensors that were trained or saved in full, such as a head."""

    directory: Path
    settings: Mapping[str, Any]
    modules: tuple[AdaptedModule, ...]
    others: tuple[str, ...]

    @property
    def weights(self) -> Path:
        return self.directory / str(SAFETENSORS_WEIGHTS_NAME)


def find_adapter(path: Path) -> AdapterFiles:
    """The adapter in a PEFT directory, or in the `adapter/` of a run or of one of its trials.

    Raises one `UserError` that lists everything that cannot be understood without the base model.
    """
    inner = path / "adapter"
    directory = inner if not (path / CONFIG_NAME).is_file() and (inner / CONFIG_NAME).is_file() else path
    settings = read_settings(directory)
    problems = [*foreign_settings(settings, _ALONE), *_broken_patterns(settings), *missing_weights(directory)]
    if problems:
        raise _unusable(directory, problems)
    with open_weights(directory / SAFETENSORS_WEIGHTS_NAME) as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    if any(len(name) > _LONGEST_NAME for name in shapes):
        raise _unusable(directory, [f"a tensor's name has more than {_LONGEST_NAME} characters"])
    pairs: dict[str, dict[str, str]] = {}
    others = []
    for name in shapes:
        if factor := _FACTOR.fullmatch(name):
            pairs.setdefault(factor[1].removeprefix(PREFIX), {})[factor[2] or factor[3]] = name
        else:
            others.append(name)
    found = [_adapted_module(name, pair, shapes, settings) for name, pair in pairs.items()]
    modules = [module for module in found if isinstance(module, AdaptedModule)]
    problems += [problem for problem in found if isinstance(problem, str)]
    problems += [f"{name} has no place in a LoRA adapter" for name in others if ".lora_" in name]
    if not pairs:
        problems.append("it has no pair of tensors lora_A and lora_B")
    if problems:
        raise _unusable(directory, problems)
    return AdapterFiles(directory, settings, tuple(modules), tuple(others))


def _unusable(directory: Path, problems: Sequence[str]) -> UserError:
    more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    shown = "; ".join(" ".join(problem.split())[:300] for problem in problems[:4])
    return UserError(f"adapter {directory} cannot be inspected or resized: {shown}{more}")


def read_settings(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG_NAME
    if not file.is_file():
        if not (directory / "comparison.json").is_file():
            raise UserError(f"{directory} is not an adapter: it has no {CONFIG_NAME}")
        if not (directory / "experiments.json").is_file():
            raise UserError(f"{directory} is not an adapter yet: the run in it has not ended")
        raise UserError(
            f"{directory} is a run whose adapter/ was removed: "
            f"rankwise compare --run {directory} --resume makes it anew"
        )
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if not (
        isinstance(settings, dict)
        and _is_number(settings.get("r"))
        and isinstance(settings["r"], int)
        and settings["r"] >= 1
        and _is_number(settings.get("lora_alpha"))
    ):
        raise UserError(f"{file} is not the configuration of a LoRA adapter: it has no r and lora_alpha")
    return settings


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def foreign_settings(settings: Mapping[str, Any], understood: Set[str] = UNDERSTOOD) -> Iterator[str]:
    plain = LoraConfig().to_dict()
    for key, value in settings.items():
        usual = plain.get(key)
        understands = key in understood or (key == "ensure_weight_tying" and _ties_nothing(settings))
        if not understands and (value or usual) and value != usual:
            yield f"{key} is {json.dumps(value)[:60]}"
    start = settings.get("init_lora_weights", True)
    if isinstance(start, list | dict) or start not in _PLAIN_INITIALISATIONS:
        yield f"init_lora_weights is {json.dumps(start)[:60]}, which changes the base weights"


def _ties_nothing(settings: Mapping[str, Any]) -> bool:
    """Whether no embedding or head is adapted or saved, by the names that PEFT looks for: only those would be tied."""
    targets, saved = settings.get("target_modules") or [], settings.get("modules_to_save") or []
    if isinstance(targets, str):
        try:
            check_pattern(targets)
        except ValueError:
            return False
        targets = [name for name in EMBEDDING_LAYER_NAMES if re.fullmatch(targets, name)]
    if not (isinstance(targets, list) and isinstance(saved, list)):
        return False
    return not any(str(name).rsplit(".", 1)[-1] in EMBEDDING_LAYER_NAMES for name in (*targets, *saved))


def missing_weights(directory: Path) -> Iterator[str]:
    if not (directory / SAFETENSORS_WEIGHTS_NAME).is_file():
        pickled = (directory / WEIGHTS_NAME).is_file()
        how = f", only pickled ones in {WEIGHTS_NAME}, which can run code: convert them" if pickled else ""
        yield f"it has no weights in {SAFETENSORS_WEIGHTS_NAME}{how}"


@contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """safetensors' own reader. A file that is damaged is a `UserError`."""
    try:
        with safe_open(file, framework="pt") as weights:
            yield weights
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} could not be read: {reason_of(error)}") from error


def _broken_patterns(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, kind, what in (("rank_pattern", int, "whole numbers"), ("alpha_pattern", int | float, "numbers")):
        pattern = settings.get(name) or {}
        if not (
            isinstance(pattern, dict)
            and all(_is_number(value) and isinstance(value, kind) for value in pattern.values())
        ):
            yield f"{name} is no mapping of module names to {what}"
            continue
        for key in pattern:
            try:
                check_pattern(key)
            except ValueError as error:
                yield f"{name} has a key that is no regular expression to match with ({key[:60]}: {error})"


def _adapted_module(
    name: str, pair: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]
) -> AdaptedModule | str:
    """The module, or why there is none."""
    if len(pair) < 2:
        return f"{name} has no lora_{'B' if 'A' in pair else 'A'}"
    rank = _for_module(settings, "rank_pattern", "r", name)
    alpha = float(_for_module(settings, "alpha_pattern", "lora_alpha", name))
    a, b = shapes[pair["A"]], shapes[pair["B"]]
    if len(a) != 2 or len(b) != 2:
        return f"{name} is no linear layer or embedding: its lora_A has shape {a}"
    if not (a[0] == b[1] == rank >= 1 and a[1] >= 1 and b[0] >= 1):
        return f"{name} has tensors of shapes {a} and {b}, which are not of the rank {rank} in {CONFIG_NAME}"
    scaling = scaling_of(alpha, rank, use_rslora=bool(settings.get("use_rslora")))
    return AdaptedModule(name, pair["A"], pair["B"], a[1], b[0], rank, alpha, scaling)


def _for_module(settings: Mapping[str, Any], patterns: str, plain: str, name: str) -> Any:
    pattern = settings.get(patterns) or {}
    return pattern.get(get_pattern_key(pattern.keys(), name), settings[plain])
