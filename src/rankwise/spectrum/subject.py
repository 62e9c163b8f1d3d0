"""What an adapter is measured on: the base model that it adapts, and test data for its task.

An adapter in a run directory knows both but for the data: the run's configuration and labels are taken. Any other
says in its own configuration which model it adapts, and whether it classifies or writes text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.base.load import load_tokenizer
from rankwise.base.model import BaseModel
from rankwise.compare.config import ComparisonConfig, located
from rankwise.compare.prepare import base_for, load_task, model_of
from rankwise.errors import RunError, UserError, shortened
from rankwise.lora.peft_files import PREFIX, AdapterFiles, open_weights
from rankwise.tasks.classification import load_classification_test
from rankwise.tasks.files.table import quoted
from rankwise.tasks.instruction import load_instruction_test
from rankwise.tasks.source import Source
from rankwise.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TASKS = {"SEQ_CLS": "classification", "CAUSAL_LM": "instruction"}


@dataclass(frozen=True)
class Subject:
    """A base model without any adapter, and a task that is only tested."""

    base: BaseModel
    task: Task


@dataclass(frozen=True)
class _Known:
    """What is known before anything is loaded; all but `config` is known of an adapter that lies in a run.

    `begun` is the run's configuration, `trained_on` the fingerprint of its training examples.
    """

    config: ComparisonConfig
    begun: ComparisonConfig | None = None
    labels: tuple[str, ...] | None = None
    revision: str | None = None
    trained_on: str | None = None


def load_subject(files: AdapterFiles, test: Source, options: Mapping[str, Any], tell: Callable[[str], None]) -> Subject:
    """Load base model and test data for an adapter; `options` are those of `ComparisonConfig`, and take precedence.

    Raises `UserError` where the data cannot be used, or where model, data and adapter do not belong together.
    """
    known = _known(files, test, options)
    config = known.config
    model = model_of(config, lambda text, share=None: tell(text))
    tell("reading data")
    tokenizer = load_tokenizer(model, trust_remote_code=config.trust_remote_code)
    if config.task == "instruction":
        task = load_instruction_test(
            test,
            group=config.group,
            tokenizer=tokenizer,
            max_length=config.max_length,
            learn_prompts=config.learn_prompts,
            exact=config.score == "exact",
            skip_bad=config.skip_bad,
        )
    else:
        task = load_classification_test(
            test,
            text=config.text,
            text_pair=config.text_pair,
            label=config.label,
            group=config.group,
            labels=known.labels,
            tokenizer=tokenizer,
            max_length=config.max_length,
        )
    tell("loading the base model")
    base = base_for(config, model, task)
    if known.revision not in (None, base.revision):
        raise UserError(
            f"adapter {files.directory} was trained over another model than {config.model} is now: "
            f"its revision was {known.revision}, and is {base.revision}; give that one with --model"
        )
    _check_fit(files, base, task)
    notes = (*task.notes, *_notes_on_leaks(known, task, tokenizer))
    return Subject(base, replace(task, notes=notes))


def _notes_on_leaks(known: _Known, task: Task, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """How many test examples the run was trained on, or chose by, where its data are files that are still there."""
    begun = known.begun
    if begun is None or begun.train is None:
        return []
    sources = [source for source in (begun.train, begun.validation, begun.test) if source is not None]
    # No directory or data set: a run directory from elsewhere may name what leads to the network.
    if not all(isinstance(source, str | Path) and _is_file(Path(source)) for source in sources):
        return []
    unknown = "whether the run was trained on some of these examples is not known: "
    try:
        seen = load_task(replace(begun, retain=None), tokenizer)
        if seen.train.fingerprint() != known.trained_on:
            return [f"{unknown}{begun.train} has changed since"]
        if known.config.max_length != begun.max_length:
            seen = load_task(replace(begun, retain=None, max_length=known.config.max_length), tokenizer)
    except UserError as error:
        return [f"{unknown}{error}"]
    rows = {split.input_ids[row].tobytes() for split in (seen.train, seen.validation) for row in range(len(split))}
    found = sum(task.test.input_ids[row].tobytes() in rows for row in range(len(task.test)))
    if not found:
        return []
    return [
        f"{found:,} of {len(task.test):,} test examples also occur in the run's train or validation data; "
        "they were kept, and reward memory"
    ]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name that a file could have, or in a directory that may not be looked into
        return False


def _known(files: AdapterFiles, test: Source, options: Mapping[str, Any]) -> _Known:
    directory, kind = files.directory, files.settings.get("task_type")
    if not isinstance(kind, str) or kind not in _TASKS:
        neither = " nor ".join(_TASKS)
        raise UserError(
            f"adapter {directory} cannot be measured: its task type is {shortened(kind)}, neither {neither}"
        )
    data = {"task": _TASKS[kind], "train": test, "validation": None, "test": test, "retain": None}
    run = _run_of(directory)
    if run is None:
        model = options.get("model") or files.settings.get("base_model_name_or_path")
        if not model:
            raise UserError(f"adapter {directory} does not say which model it adapts: give it with --model")
        return _Known(ComparisonConfig(**{**data, **options, "model": model}))
    file = run / "comparison.json"
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        config = located(there["config"], Path(there.get("directory", "")))
        begun = ComparisonConfig.from_mapping(config, str(file))
        labels, revision = tuple(there["data"]["labels"]) or None, there["model"]["revision"]
        trained_on = there["data"].get("train", {}).get("sha256")
        if not isinstance(revision, str) or not all(isinstance(label, str) for label in labels or ()):
            raise ValueError("labels or revision are no texts")
    except (AttributeError, UserError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise RunError(f"{file} is damaged ({shortened(str(error))}); restore it from a copy") from error
    if begun.task == "docmatch" and "text_pair" not in options:
        raise UserError(f"run {run} was trained on pairs of texts: name the column of the second with --text-pair")
    # Where the run was trained does not matter here, and may be another machine.
    here = {"device": "auto", "trust_remote_code": False}  # nor is another's consent this user's
    return _Known(replace(begun, **{**data, **here, **options}), begun, labels, revision, trained_on)


def _run_of(adapter: Path) -> Path | None:
    """The run directory that an adapter lies in: as its own, or as that of a trial."""
    parents = adapter.absolute().parents
    places = [parents[0]] + ([parents[2]] if len(parents) > 2 and parents[1].name == "trials" else [])
    return next((place for place in places if (place / "comparison.json").is_file()), None)


def _check_fit(files: AdapterFiles, base: BaseModel, task: Task) -> None:
    """The adapter's modules are the model's, and heads are one's or the other's: PEFT would make up what is missing."""
    misfit = f"adapter {files.directory} does not fit {base.name}"
    inside = {name for name, _ in base.model.named_modules()}
    foreign = [module.name for module in files.modules if module.name not in inside]
    if foreign:
        raise UserError(f"{misfit}, which has no {foreign[0]}; give the model that it adapts with --model")
    with open_weights(files.weights) as weights:
        saved = {name.removeprefix(PREFIX): tuple(weights.get_slice(name).get_shape()) for name in files.others}
    for name, shape in base.trained_shapes.items():
        if name not in saved:
            if name.rpartition(".")[0] in base.fresh_modules:
                raise UserError(f"{misfit}: neither has weights of {name}, so that nothing can be measured")
        elif saved[name][0] != shape[0] == len(task.labels):
            raise UserError(
                f"adapter {files.directory} tells {saved[name][0]} classes apart ({name}), and the data have "
                f"{len(task.labels)} labels: {quoted(task.labels)}"
            )
