"""What is compared, on what, and how: every option of `rankwise compare`, declared once.

The command line, configuration files and Python all fill this one record. A field's metadata holds its
help text and how text becomes its value, so an option cannot exist in one place and be lost in another.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from rankwise.base.quantize import Quantization
from rankwise.base.source import EMBEDDED_LM
from rankwise.errors import UserError, shortened
from rankwise.fidelity import LADDER
from rankwise.records import Metric, Trial
from rankwise.tasks.source import Source
from rankwise.values import (
    distinct,
    one_of,
    parse_duration,
    parse_flag,
    parse_inner_share,
    parse_positive,
    parse_ranks,
    parse_rates,
    parse_share,
    parse_targets,
    parse_text,
    split_list,
    whole_number,
)

AlphaRule: TypeAlias = Literal["rank", "2rank"] | float
Scaling: TypeAlias = Literal["alpha/rank", "rslora"]
Base: TypeAlias = Literal["float32", "bfloat16", "nf4", "nf4-double", "int8"]
TrackerName: TypeAlias = Literal["tensorboard", "mlflow", "wandb", "trackio"]

_BASES: tuple[Base, ...] = get_args(Base)

BUILT_IN = ("docmatch", "docstrings")  # tasks that bring their own data
DATA = ("train", "validation", "test", "retain")
_IN_MEMORY = " in memory"
_RANKS = {"grid": (4, 8, 16, 32), "escalate": (8, 16), "ladder": (1, 2, 4, 8, 16, 32)}  # where none are given


def is_in_memory(value: object) -> bool:
    """Whether a configuration that was written down says so of its data, which are then not there."""
    return isinstance(value, str) and value.endswith(_IN_MEMORY)


def located(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The options, with the data and the model that lie in a directory found there, if it is another than this one."""
    if directory == Path() or (_exists(directory) and directory.samefile(Path())):
        return values
    marks = {**dict.fromkeys(DATA, ""), "model": "config.json"}
    given = {name: values[name] for name in marks if isinstance(values.get(name), str) and values[name]}
    places = {name: directory / value for name, value in given.items()}
    return values | {name: str(place) for name, place in places.items() if _exists(place / marks[name])}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name that a file could have
        return False


def _source(value: object) -> Source:
    return parse_text(value) if isinstance(value, str) or value is None else value


def _alpha(value: object) -> AlphaRule:
    if value in ("rank", "2rank"):
        return value
    try:
        return parse_positive(value)
    except UserError:
        raise UserError(f"{shortened(value)} is not rank, 2rank or a number above 0") from None


def _full_rates(value: object) -> tuple[float, ...] | None:
    return None if isinstance(value, str) and value == "none" else parse_rates(value)


def _trackers(value: object) -> tuple[TrackerName, ...]:
    names = distinct(one_of("none", *get_args(TrackerName)), "tracker")(split_list(value) or "none")
    if "none" in names and len(names) > 1:
        raise UserError("none and others are both given: leave one out")
    return tuple(name for name in names if name != "none")


def _option(default: Any, parse: Callable[[object], Any], help: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": help})


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """A comparison's configuration. Values are checked when it is made; `UserError` names the field.

    >>> ComparisonConfig(train="train.csv", ranks="4,8", learning_rates=[1e-3]).ranks
    (4, 8)
    """

    model: str = _option(
        "embedded",
        lambda value: parse_text(str(value) if isinstance(value, Path) else value),
        "Hub id or directory of the base model; `embedded` is all-MiniLM-L6-v2, `embedded-lm` a small Llama made here.",
    )
    task: Literal["classification", "instruction", "docmatch", "docstrings"] = _option(
        "classification",
        one_of("classification", "instruction", *BUILT_IN),
        "`classification` or `instruction` tuning on your data; built in: `docmatch` (classes), `docstrings` (text).",
    )
    train: Source | None = _option(
        None, _source, "Training data: CSV, TSV, JSONL, JSON or Parquet file, or a data set's id."
    )
    validation: Source | None = _option(None, _source, "Validation data [15 % of train, after test is cut].")
    test: Source | None = _option(None, _source, "Test data [20 % of train].")
    text: str = _option("text", parse_text, "Column of the text.")
    text_pair: str | None = _option(None, parse_text, "Column of the second text, for pairs.")
    label: str = _option("label", parse_text, "Column of the label.")
    group: str | None = _option(
        None,
        parse_text,
        "Column that says which examples belong together (a document, a conversation): none such are split, and limits "
        "count groups.",
    )
    learn_prompts: bool = _option(False, parse_flag, "Instruction: learn prompts, too, not completions alone.")
    score: Literal["tokens", "exact"] = _option(
        "tokens",
        one_of("tokens", "exact"),
        "Instruction: accuracy is the share of right `tokens`, or of completions that are `exact` in greedy decoding.",
    )
    retain: Source | None = _option(
        None,
        _source,
        "Instruction: other texts (.txt or as --train) to score before and after, to see what is forgotten.",
    )
    skip_bad: bool = _option(False, parse_flag, "Instruction: leave out examples that cannot be used.")
    keep_leaked: bool = _option(False, parse_flag, "Keep test and validation examples that occur in earlier splits.")
    max_train_examples: int | None = _option(None, whole_number(2), "Use this many training examples.")
    max_validation_examples: int | None = _option(None, whole_number(2), "Use this many validation examples.")
    max_test_examples: int | None = _option(
        None, whole_number(2), "Use this many test examples, drawn at random; more extend a run."
    )
    max_length: int = _option(
        None,
        whole_number(1),
        "Cut examples to this many tokens [128; instruction: 512, of prompts the beginning first].",
    )
    strategy: Literal["grid", "escalate", "ladder"] = _option(
        "grid",
        one_of("grid", "escalate", "ladder"),
        "`grid` trains all ranks; `escalate` starts with two, doubles while the larger is better, else goes down; "
        "`ladder` trains the largest, cuts it to the others, and trains those around the smallest cut that is as good. "
        f"{LADDER}",
    )
    ranks: tuple[int, ...] = _option(
        None,
        parse_ranks,
        "Ranks to compare; with escalate the two to start with [4,8,16,32; escalate: 8,16; ladder: 1,2,4,8,16,32]",
    )
    budget: float | None = _option(
        None,
        parse_duration,
        "With escalate: start no rank whose steps, without evaluations, would make the run longer than this: 90s, 2h.",
    )
    alpha: AlphaRule = _option(16.0, _alpha, "Alpha: a number for all ranks, or `rank` or `2rank` of each.")
    rslora: bool = _option(False, parse_flag, "Scale by alpha/sqrt(rank); in a comparison short for --scalings rslora.")
    scalings: tuple[Scaling, ...] = _option(
        ("alpha/rank",),
        distinct(one_of("alpha/rank", "rslora"), "scaling"),
        "`alpha/rank`, `rslora` (alpha/sqrt(rank)), or both: the first answers, the other tells whether it agrees.",
    )
    target_modules: str | tuple[str, ...] = _option(
        "all-linear", parse_targets, "Modules to adapt: `all-linear`, names, or a regular expression."
    )
    learning_rates: tuple[float, ...] = _option((3e-4, 1e-3), parse_rates, "Learning rates tried at every rank.")
    full_learning_rates: tuple[float, ...] | None = _option(
        None, _full_rates, "Fine-tune all weights as well, at these learning rates, as another reference [none]."
    )
    seeds: int = _option(3, whole_number(1), "How many seeds each rank and learning rate is trained with.")
    first_seed: int = _option(0, whole_number(0), "The first seed; the others follow it.")
    steps: int | None = _option(None, whole_number(1), "Optimiser steps of each trial.")
    epochs: float | None = _option(None, parse_positive, "Passes over the training data instead of steps [3].")
    batch_size: int = _option(16, whole_number(1), "Examples of one batch.")
    gradient_accumulation: int = _option(1, whole_number(1), "Batches of one optimiser step.")
    gradient_checkpointing: bool = _option(False, parse_flag, "Recompute activations to save memory.")
    warmup_ratio: float = _option(0.1, parse_share, "Share of the steps over which the learning rate rises.")
    schedule: Literal["linear", "cosine"] = _option(
        "linear", one_of("linear", "cosine"), "How the learning rate then falls to 0: `linear` or `cosine`."
    )
    metric: Metric = _option("nll", one_of("nll", "accuracy"), "What decides: `nll`, per-example loss, or `accuracy`.")
    keep: float = _option(
        0.95, parse_inner_share, "A rank suffices when it keeps this share of the largest rank's gain over rank 0."
    )
    margin: float | None = _option(
        None, parse_positive, "Or when it loses less than this: nats, or a share of 1 with --metric accuracy."
    )
    max_grad_norm: float = _option(1.0, parse_positive, "Norm that each trial's gradient is clipped to.")
    evaluations: int = _option(4, whole_number(1), "How often validation is scored.")
    dtype: Literal["auto", "float32", "bfloat16"] = _option(
        "auto", one_of("auto", "float32", "bfloat16"), "Base model's dtype: `auto`, `float32` or `bfloat16`."
    )
    quantize: Quantization = _option(
        "none",
        one_of("none", "nf4", "nf4-double", "int8"),
        "How the base model's linear layers are stored: as they are, in 4 bits (QLoRA) or 8; needs `rankwise[quant]`.",
    )
    bases: tuple[Base, ...] | None = _option(
        None,
        distinct(one_of(*_BASES), "base"),
        "Compare over each of these, such as bfloat16,nf4, in place of dtype and quantize: the first answers.",
    )
    device: str = _option("auto", parse_text, "`auto`, `cpu`, `cuda:N` or `mps`.")
    pack_size: int | None = _option(
        None, whole_number(1), "Most trials trained together; chosen to fit where not given."
    )
    report_to: tuple[TrackerName, ...] = _option(
        "none",
        _trackers,
        "Show trials in these as well: tensorboard (in the run directory), mlflow, wandb, trackio; "
        "needs `rankwise[trackers]`.",
    )
    backend: Literal["local", "ray"] = _option(
        "local",
        one_of("local", "ray"),
        "Where packs are trained: here, one after another (`local`), or side by side on the workers of a Ray cluster; "
        "needs `rankwise[ray]`.",
    )
    address: str | None = _option(
        None,
        parse_text,
        "With ray: the cluster, `auto`, HOST:PORT or ray://HOST:PORT [RAY_ADDRESS, else one that is started here].",
    )
    trust_remote_code: bool = _option(False, parse_flag, "Run code that the model brings.")

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if value is None and option.default is None:
                continue
            try:
                object.__setattr__(self, option.name, option.metadata["parse"](value))
            except UserError as error:
                raise UserError(f"{option.name.replace('_', '-')}: {error}") from None
        if self.rslora:
            if self.scalings not in (("alpha/rank",), ("rslora",)):
                raise UserError("rslora and scalings are both given: leave rslora out")
            object.__setattr__(self, "scalings", ("rslora",))
            object.__setattr__(self, "rslora", False)
        self._check_strategy()
        self._check_task()
        if self.address is not None and self.backend != "ray":
            raise UserError("address: only backend ray has one; leave it out, or give --backend ray")
        if self.metric == "accuracy" and self.margin is not None and self.margin >= 1:
            raise UserError(f"margin {self.margin:g} is all there is of an accuracy: 3 points are 0.03")
        if self.steps is not None and self.epochs is not None:
            raise UserError("steps and epochs are both given: leave one out")

    def _check_task(self) -> None:
        if self.max_length is None:
            object.__setattr__(self, "max_length", 512 if self.task == "instruction" else 128)
        if self.task in BUILT_IN:
            data = [name for name in DATA if getattr(self, name) is not None]  # a table cannot be asked whether it is
            for name in [*data, *self._given("text", "text_pair", "label", "group", "keep_leaked")]:
                raise UserError(f"{name}: task {self.task} brings its own data; leave it out")
        elif self.train is None:
            raise UserError(
                f"no training data: give --train FILE, or --task {' or '.join(BUILT_IN)}, which are built in"
            )
        if self.task == "docstrings" and not self._given("model"):
            object.__setattr__(self, "model", EMBEDDED_LM)
        if self.task != "instruction":
            for name in self._given("learn_prompts", "score", "skip_bad"):
                raise UserError(f"{name}: only task instruction has it; leave it out")
            if self.retain is not None and self.task == "classification":
                raise UserError("retain: only language models can be asked what they forget; leave it out")
        elif not self._given("model"):
            raise UserError(
                f"model: task instruction needs a causal language model; give one with --model, or {EMBEDDED_LM}"
            )
        else:
            for name in self._given("text", "text_pair", "label"):
                raise UserError(
                    f"{name}: task instruction finds its columns by their names "
                    "(messages; prompt and completion; instruction, input and output; text); leave it out"
                )
        if self.bases is not None:
            for name in self._given("dtype", "quantize"):
                raise UserError(f"{name} and bases are both given: leave one out")
        if self.margin is not None and self._given("keep"):
            raise UserError("keep and margin are both given: leave one out")
        for base in (self.quantize, *(self.bases or ())):
            if self.full_learning_rates is not None and base not in ("none", "float32", "bfloat16"):
                raise UserError(f"full-learning-rates: weights in {base} cannot be trained; leave one out")

    def _given(self, *names: str) -> list[str]:
        """Which of these options are not as they are by default, as they are written."""
        options = (option for option in fields(self) if option.name in names)
        return [option.name.replace("_", "-") for option in options if getattr(self, option.name) != option.default]

    def _check_strategy(self) -> None:
        if self.ranks is None:
            object.__setattr__(self, "ranks", _RANKS[self.strategy])
        if self.strategy != "escalate" and self.budget is not None:
            raise UserError("budget: only strategy escalate has one; leave it out, or give --strategy escalate")
        if self.strategy == "escalate" and (len(self.ranks) != 2 or self.ranks[1] != 2 * self.ranks[0]):
            ranks = ",".join(map(str, self.ranks))
            raise UserError(
                f"ranks: strategy escalate starts with a rank and its double, such as 8,16, not with {ranks}"
            )
        if self.strategy == "ladder" and len(self.ranks) == 1:
            raise UserError(
                f"ranks: strategy ladder cuts the largest rank to smaller ones: give some beside {self.ranks[0]}"
            )

    @classmethod
    def default(cls, name: str) -> Any:
        """An option's value where it is not given. Raises `KeyError` where there is no such option."""
        return {option.name: option.default for option in fields(cls)}[name]

    @classmethod
    def is_default(cls, name: str, value: Any) -> bool:
        """Whether a value, of a configuration that was written down, is that of an option which is not given."""
        default = cls.default(name)
        return value in (None, []) or value == (list(default) if isinstance(default, tuple) else default)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], origin: str) -> ComparisonConfig:
        """A configuration from names as they are written on the command line or in a file (`origin`)."""
        names = [option.name for option in fields(cls)]
        given = {str(name).replace("-", "_"): value for name, value in values.items()}
        if given.get("rslora") is True and "scalings" in given:
            raise UserError(f"{origin}: rslora and scalings are both given: leave one out")
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name[:80], names, n=1)
                hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
                raise UserError(f"{origin}: no option {shortened(name.replace('_', '-'))}{hint}")
        return cls(**given)

    def trial(self, rank: int, learning_rate: float, seed: int) -> Trial:
        alpha = {"rank": float(rank), "2rank": 2.0 * rank}.get(str(self.alpha))
        rslora = self.scalings[0] == "rslora"
        return Trial(rank, float(self.alpha) if alpha is None else alpha, rslora, learning_rate, seed)

    @property
    def each_scaling(self) -> tuple[ComparisonConfig, ...]:
        """This comparison under each of its scalings alone."""
        return tuple(replace(self, scalings=(scaling,)) for scaling in self.scalings)

    @property
    def each_base(self) -> tuple[ComparisonConfig, ...]:
        """This comparison over each of its bases alone."""
        if self.bases is None:
            return (self,)
        options: list[dict[str, Any]] = [
            {"dtype": base} if base in ("float32", "bfloat16") else {"quantize": base} for base in self.bases
        ]
        return tuple(replace(self, bases=None, **of_base) for of_base in options)

    @property
    def first_ranks(self) -> tuple[int, ...]:
        """The ranks that training begins with."""
        return self.ranks[-1:] if self.strategy == "ladder" else self.ranks

    @property
    def seed_numbers(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; data in memory is told by its type."""

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return list(value)
            if isinstance(value, Path):
                return str(value)
            is_plain = value is None or isinstance(value, str | int | float)
            return value if is_plain else f"{type(value).__name__}{_IN_MEMORY}"

        return {option.name: plain(getattr(self, option.name)) for option in fields(self)}
