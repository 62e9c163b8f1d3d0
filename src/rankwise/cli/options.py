"""Command-line options made from `ComparisonConfig`, so that each is declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any

import typer

from rankwise.compare.config import ComparisonConfig


def options_from_config(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for every field of the configuration.

    Those that were given reach it as a mapping, its parameter `options`, as text or flags: the
    configuration parses them as it does those of a file.
    """
    names = [option.name for option in fields(ComparisonConfig)]

    def with_options(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in names}
        command(**arguments, options={name: value for name, value in given.items() if value is not None})

    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own if parameter.name != "options"]
    parameters += [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(option))
        for option in fields(ComparisonConfig)
    ]
    with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    return with_options


def _annotation(option: Field[Any]) -> Any:
    assert option.default is not MISSING
    default = option.default
    if isinstance(default, bool):
        return Annotated[bool | None, typer.Option(help=option.metadata["help"], show_default=False)]
    shown = (
        ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
        if isinstance(default, tuple)
        else default
    )
    help_text = option.metadata["help"] + ("" if shown is None else f" [{shown}]")
    return Annotated[str | None, typer.Option(help=help_text, show_default=False, metavar=_metavar(option))]


def _metavar(option: Field[Any]) -> str:
    if str(option.type).startswith("tuple"):
        return "LIST"
    return "NUMBER" if isinstance(option.default, int | float) else "VALUE"
