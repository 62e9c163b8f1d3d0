"""Command-line options made from `ComparisonConfig`, so that each is declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.compare.config import ComparisonConfig, is_in_memory
from rankwise.compare.config_file import read_begun, read_config_file
from rankwise.errors import UserError

# What is given of a pair on the command line takes the place of either in a file.
_OVERRIDE_EACH_OTHER = (
    ("steps", "epochs"),
    ("keep", "margin"),
    ("bases", "dtype"),
    ("bases", "quantize"),
    ("scalings", "rslora"),
)
_OF_COMMANDS = {"run", "resume", "plan", "json", "require_resolved", "examples", "params"}


def options_from_config(command: Callable[..., None], names: Collection[str] | None = None) -> Callable[..., None]:
    """`command` with an option for every field of the configuration, or for those of these names.

    Those that were given reach it as a mapping, its parameter `options`, as text or flags: the
    configuration parses them as it does those of a file.
    """
    options = [option for option in fields(ComparisonConfig) if names is None or option.name in names]

    def with_options(**arguments: Any) -> None:
        given = {option.name: arguments.pop(option.name) for option in options}
        command(**arguments, options={name: value for name, value in given.items() if value is not None})

    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own if parameter.name != "options"]
    parameters += [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(option))
        for option in options
    ]
    with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    return with_options


def check_resume(run: Path | None, *, resume: bool) -> None:
    """Raise `UserError` where a run is to go on and is not there, or is there and not to go on."""
    if run is not None:
        from rankwise.compare.directory import RunDirectory

        RunDirectory(run).check_free(resume=resume)
    elif resume:
        raise UserError("--resume goes on with a run: say which with --run")


def configured(file: Path | None, options: Mapping[str, Any], *, begun: Path | None = None) -> ComparisonConfig:
    """The configuration of a file, where there is one, and of the options given on the command line, which override.

    Without a file, `begun` is a run that goes on with the options that it was begun with.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = read_config_file(file)
    elif begun is not None:
        values = read_begun(begun)
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    if of_commands := sorted(values.keys() & _OF_COMMANDS):
        names = ", ".join(name.replace("_", "-") for name in of_commands)
        raise UserError(f"{file}: {names}: no option of a comparison, but of a command; leave it out of the file")
    for pair in _OVERRIDE_EACH_OTHER:
        if given := options.keys() & pair:
            values = {name: value for name, value in values.items() if name in given or name not in pair}
    before = values.get("metric", ComparisonConfig.default("metric"))
    metric = options.get("metric", before)
    if "margin" in values and "margin" not in options and metric != before:
        unit = "a share of 1, for accuracy" if metric == "accuracy" else "in nats, for nll"
        raise UserError(f"metric: the margin of {values['margin']} is of another one; give --margin, {unit}, or --keep")
    if options.get("backend") == "local":
        values.pop("address", None)
    values |= options
    for name, value in values.items():
        if begun is not None and is_in_memory(value):
            raise UserError(f"{name}: the run began in Python, with data in memory; go on there, or give --{name} FILE")
    return ComparisonConfig.from_mapping(values, origin="the command line" if file is None else str(file))


def _annotation(option: Field[Any]) -> Any:
    assert option.default is not MISSING
    default = option.default
    if isinstance(default, bool):
        return Annotated[bool | None, typer.Option(help=option.metadata["help"], show_default=False)]
    shown = (
        ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
        if isinstance(default, tuple)
        else f"{default:g}"
        if isinstance(default, float)
        else default
    )
    help_text = option.metadata["help"] + ("" if shown is None else f" [{shown}]")
    return Annotated[str | None, typer.Option(help=help_text, show_default=False, metavar=_metavar(option))]


def _metavar(option: Field[Any]) -> str:
    if str(option.type).startswith("tuple"):
        return "LIST"
    return "NUMBER" if option.type in ("int", "float") else "VALUE"
