"""Everything a comparison has in memory before anything is measured or trained."""

from __future__ import annotations

import math
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from transformers import PreTrainedTokenizerBase

from rankwise.base.load import load_base, load_tokenizer
from rankwise.base.model import BaseModel, position_limit
from rankwise.base.shapes import ALL_LINEAR, LinearLayer, match_targets
from rankwise.base.source import EMBEDDED_LM
from rankwise.compare.config import BUILT_IN, ComparisonConfig
from rankwise.compare.differences import Description
from rankwise.compare.plan import MOST_TRIALS, MOST_TRIALS_ON_CUDA
from rankwise.compare.schedule import Following, most_rates
from rankwise.embedded import ensure_embedded_lm
from rankwise.errors import UserError
from rankwise.lora.fit import unfit_targets
from rankwise.lora.packable import packable
from rankwise.lora.peft_io import misread_targets
from rankwise.memory.parameters import adapted_layers, capacity_floor, check_ranks
from rankwise.records import ParameterCount, Trial
from rankwise.tasks.classification import load_classification
from rankwise.tasks.docmatch import load_docmatch
from rankwise.tasks.docstrings import load_docstrings
from rankwise.tasks.instruction import load_instruction
from rankwise.tasks.retained import load_retained
from rankwise.tasks.source import Caps, is_unicode
from rankwise.tasks.task import Split, Task
from rankwise.train.baseline import head_chain
from rankwise.train.heap import keep_freed_memory
from rankwise.train.settings import TrainingSettings, steps_of_epochs

_DEFAULT_EPOCHS = 3.0
_FEWEST_VALIDATED = 2
_FEW_VALIDATED = 30  # examples: of fewer the standard error itself is more than an eighth of it off, 1/√(2(n-1))


@dataclass(frozen=True)
class Prepared:
    """Everything that is in memory before anything is measured or trained.

    `following` are the ranks that follow the largest, as schedule.py says. `target_modules` names the targets to other
    trainers; `left_out` tells of what else the names that were asked for mean there.
    """

    config: ComparisonConfig
    base: BaseModel
    task: Task
    targets: tuple[LinearLayer, ...]
    settings: TrainingSettings
    packable: bool
    target_modules: str | tuple[str, ...]
    left_out: tuple[str, ...] = ()
    following: Following = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        alone = f"{self.config.model} does not keep the rows of a batch apart: its trials are trained one by one"
        warnings = check_ranks(self.config.ranks, self.targets)
        return (
            *self.task.notes,
            *self._few_validated,
            *self._hints,
            *warnings,
            *self.left_out,
            *(() if self.packable else (alone,)),
        )

    @property
    def _few_validated(self) -> list[str]:
        if not _chooses(self.config):
            return []
        split = self.task.validation
        what = "examples" if split.groups is None else "groups"
        count = len(split if split.groups is None else set(split.groups.tolist()))
        if count >= _FEW_VALIDATED:
            return []
        return [
            f"validation: what {count} {what} choose (learning rates, the next rank of a ladder or escalation) is "
            f"partly chance; give {_FEW_VALIDATED} or more"
        ]

    @property
    def _hints(self) -> list[str]:
        learned = self.task.train.learned
        if learned is None:
            return []
        tokens = int(learned.flat.sum())
        return [
            f"a hint, no finding: {tokens:,} learned tokens are about as many bits, which adapters of "
            f"r={capacity_floor(tokens, self.targets)} could hold; this has said 15 to 21 where 64 to 256 were needed"
        ]

    def as_grid(self, ranks: Collection[int], following: Following | None = None) -> Prepared:
        """The same as a grid of these ranks, some of which follow the largest."""
        config = replace(self.config, strategy="grid", budget=None, ranks=tuple(sorted(ranks)))
        return replace(self, config=config, following=following or {})

    @property
    def most_trials(self) -> int:
        """How many trials a pack may have, whatever fits."""
        if not self.packable:
            return 1
        return self.config.pack_size or (MOST_TRIALS_ON_CUDA if self.base.device.type == "cuda" else MOST_TRIALS)

    def params(self, rank: int) -> ParameterCount:
        return ParameterCount(
            adapters=sum(target.lora_params(rank) for target in self.targets),
            heads=sum(math.prod(shape) for shape in self.base.trained_shapes.values()),
        )

    @property
    def cost_arguments(self) -> tuple[BaseModel, Task, list[Trial], tuple[LinearLayer, ...], TrainingSettings]:
        rate, seed = self.config.learning_rates[0], self.config.first_seed
        trials = [self.config.trial(rank, rate, seed) for rank in self.config.ranks]
        return self.base, self.task, trials, self.targets, self.settings


@runtime_checkable
class Tell(Protocol):
    """Is told what happens, and of what takes long the share that is done."""

    def __call__(self, text: str, share: float | None = None) -> None: ...


def prepare(config: ComparisonConfig, tell: Tell) -> Prepared:
    model = model_of(config, tell)
    tell("reading data")
    tokenizer = load_tokenizer(model, trust_remote_code=config.trust_remote_code)
    task = load_task(config, tokenizer)
    if config.batch_size > len(task.train):
        raise UserError(
            f"batch-size: {config.batch_size:,} is more than the {len(task.train):,} training examples; give no more"
        )
    if _chooses(config) and len(task.validation) < _FEWEST_VALIDATED:
        raise UserError(
            f"validation: {len(task.validation)} example, without those that also occur in train, "
            f"is too few to choose by; give at least {_FEWEST_VALIDATED}, or better {_FEW_VALIDATED}"
        )
    tell("loading the base model")
    base = base_for(config, model, task)
    if config.gradient_checkpointing and not base.model.supports_gradient_checkpointing:
        raise UserError(f"gradient-checkpointing: {config.model} cannot recompute activations; leave it out")
    if not base.causal:
        head_chain(base, task)  # what rank 0 cannot do is told before anything is written
    if config.full_learning_rates is not None and base.quantize != "none":
        raise UserError(f"full-learning-rates: weights in {base.quantize} cannot be trained; leave them out")
    targets, left_out = _targets(config, base)
    check_ranks(config.ranks, targets)
    steps = config.steps
    if steps is None:
        epochs = _DEFAULT_EPOCHS if config.epochs is None else config.epochs
        steps = steps_of_epochs(epochs, len(task.train), config.batch_size, config.gradient_accumulation)
    settings = TrainingSettings(
        steps=steps,
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation,
        warmup_ratio=config.warmup_ratio,
        schedule=config.schedule,
        max_grad_norm=config.max_grad_norm,
        evaluations=config.evaluations,
        checkpointing=config.gradient_checkpointing,
    )
    names = _names(base, targets) if left_out else config.target_modules
    return Prepared(config, base, task, targets, settings, packable(base, targets), names, left_out)


def _chooses(config: ComparisonConfig) -> bool:
    """Whether anything that is trained is chosen by validation."""
    return len(config.learning_rates) > 1 or config.strategy != "grid"


def _targets(config: ComparisonConfig, base: BaseModel) -> tuple[tuple[LinearLayer, ...], tuple[str, ...]]:
    """The layers to adapt, and notes on those that `all-linear` would have meant in PEFT.

    Raises `UserError` where a layer that was asked for cannot be adapted.
    """
    asked = config.target_modules
    targets = match_targets(base.model, asked, trained=base.trained_modules)
    unfit = unfit_targets(base, targets)
    unfit |= misread_targets(base, [target for target in targets if target.name not in unfit])
    fit = tuple(target for target in targets if target.name not in unfit)
    notes = []
    if unfit:
        name, why = next(iter(unfit.items()))
        if asked != ALL_LINEAR or not fit:
            raise UserError(f"target-modules: {name} cannot be adapted: {why}; name others")
        more = f" and {len(unfit) - 1} more" if len(unfit) > 1 else ""
        notes.append(f"target-modules: {name}{more} left out: {why}")
    try:
        in_peft = adapted_layers(base.model, asked, trained=base.trained_modules)
    except UserError:  # experts that PEFT does not adapt one without the other
        in_peft = ()
    if experts := [layer for layer in in_peft if layer not in targets]:
        notes.append(
            f"target-modules: the {len(experts)} parameters of experts and routers, such as {experts[0].name}, which "
            "PEFT would adapt as well, stay frozen"
        )
    return fit, tuple(notes)


def _names(base: BaseModel, targets: Sequence[LinearLayer]) -> tuple[str, ...]:
    """The last parts of the targets' names where PEFT takes these for the targets and no more, else whole names."""
    ends = tuple(sorted({target.name.rpartition(".")[2] for target in targets}))
    try:
        alike = set(adapted_layers(base.model, ends, trained=base.trained_modules)) == set(targets)
    except UserError:  # they are names of other modules, too
        alike = False
    return ends if alike else tuple(target.name for target in targets)


def model_of(config: ComparisonConfig, tell: Tell) -> str:
    """The base model as `load_base` knows it; the embedded language model is made where it is not there yet."""
    return str(ensure_embedded_lm(tell)) if config.model == EMBEDDED_LM else config.model


def base_for(config: ComparisonConfig, model: str, task: Task) -> BaseModel:
    """Load the base model for a task. Raises `UserError` where the task's texts are too long for it, or not its own."""
    base = load_base(
        model,
        num_labels=None if task.is_instruction else len(task.labels),
        dtype=config.dtype,
        device=config.device,
        quantize=config.quantize,
        trust_remote_code=config.trust_remote_code,
    )
    if base.device.type == "cpu":
        keep_freed_memory()
    limit = position_limit(base)
    if limit is not None and config.max_length > limit:
        raise UserError(f"max-length: {config.max_length} is more than the {limit} positions that {config.model} has")
    _check_tokens(base, task)
    return base


def load_task(config: ComparisonConfig, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The data of a comparison. Raises `UserError` for such as cannot be used."""
    caps: Caps = {
        "train": config.max_train_examples,
        "validation": config.max_validation_examples,
        "test": config.max_test_examples,
    }
    if config.task in BUILT_IN:
        load = load_docmatch if config.task == "docmatch" else load_docstrings
        return load(tokenizer, config.max_length, caps=caps)
    assert config.train is not None
    if config.task == "instruction":
        task = load_instruction(
            train=config.train,
            validation=config.validation,
            test=config.test,
            group=config.group,
            tokenizer=tokenizer,
            max_length=config.max_length,
            learn_prompts=config.learn_prompts,
            exact=config.score == "exact",
            skip_bad=config.skip_bad,
            keep_leaked=config.keep_leaked,
            caps=caps,
        )
        if config.retain is None:
            return task
        return replace(task, retained=load_retained(config.retain, tokenizer, config.max_length))
    return load_classification(
        train=config.train,
        validation=config.validation,
        test=config.test,
        text=config.text,
        text_pair=config.text_pair,
        label=config.label,
        group=config.group,
        tokenizer=tokenizer,
        max_length=config.max_length,
        keep_leaked=config.keep_leaked,
        caps=caps,
    )


def _check_tokens(base: BaseModel, task: Task) -> None:
    rows = base.model.get_input_embeddings().num_embeddings
    splits = (task.train, task.validation, task.test)
    largest = max(task.pad_token_id, *(int(split.input_ids.flat.max()) for split in splits))
    if largest >= rows:
        raise UserError(
            f"the tokenizer of {base.name} gives token {largest}, and the model has {rows} token embeddings: "
            "they do not belong together"
        )


def describe(prepared: Prepared) -> Description:
    def data(split: Split) -> dict[str, object]:
        return {"examples": len(split), "sha256": split.fingerprint()}

    base, task = prepared.base, prepared.task
    return {
        "config": prepared.config.to_dict(),
        "directory": _directory(),  # from where paths in it are meant
        "model": {
            "revision": base.revision,
            "dtype": base.dtype,
            "device": base.device.type,
            "targets": [target.name for target in prepared.targets],
            "trained_modules": list(base.trained_modules),
        },
        "data": {
            "labels": list(task.labels),
            "train": data(task.train),
            "validation": data(task.validation),
            "test": data(task.test),
        },
        "steps": prepared.settings.steps,
        "base_bytes": base.bytes,
        "versions": {name: version(name) for name in ("rankwise", "torch", "transformers", "peft", "numpy")},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else base.device.type,
            "threads": torch.get_num_threads(),
        },
    }


def _directory() -> str:
    """The current one; nothing where it was removed, or has a name that JSON cannot hold."""
    try:
        name = str(Path.cwd())
    except OSError:
        return ""
    return name if is_unicode(name) else ""


def disk_bytes(prepared: Prepared) -> int:
    """An upper bound: training states of all trials that there may be, and the largest that is written at once twice.

    States are 12 bytes a parameter. The adapters, 4 bytes, of those trained to the end take less than what those
    that were dropped before gave back. A file is written beside and renamed, hence twice. That of a full fine-tuning
    is there once the packs are done.
    """
    config = prepared.config
    trials = most_rates(config) * config.seeds * len(config.scalings)
    states = [12 * prepared.params(rank).total for rank in config.ranks for _ in range(trials)]
    checkpoint = sum(sorted(states)[-prepared.most_trials :])
    in_full = 0
    if config.full_learning_rates is not None:
        in_full = 12 * sum(parameter.numel() for parameter in prepared.base.model.parameters())
    scores = 16 * len(prepared.task.test) * len(states)
    return sum(states) + 2 * max(checkpoint, in_full) + scores + 50_000_000
