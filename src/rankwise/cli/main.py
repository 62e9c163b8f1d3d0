"""The command line: which commands there are, and how an error reaches the user.

Exit codes: 0, 1 for a failed run, 2 for bad input, 3 for an answer that `--require-resolved` does not accept,
130 for an interrupt. An error is one line on standard
error.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from inspect import cleandoc
from textwrap import indent
from typing import Annotated

import typer
from typer.exceptions import TyperException

from rankwise.cli.compare import compare
from rankwise.cli.demo import demo
from rankwise.cli.estimate import estimate
from rankwise.cli.export import export
from rankwise.cli.inspect import inspect
from rankwise.cli.options import options_from_config
from rankwise.cli.output import ignore_interrupts
from rankwise.cli.probe import OPTIONS, probe
from rankwise.cli.report import report
from rankwise.cli.resize import resize
from rankwise.errors import RunError, UserError

app = typer.Typer(
    name="rankwise",
    help="Which LoRA rank? Answered by measurement.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are brackets
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(command: Callable[..., None]) -> None:
    """Add a command. Its help ends with the last paragraph of its docstring: examples, a line each, to be pasted."""
    text, _, examples = cleandoc(command.__doc__ or "").rpartition("\n\n")
    app.command(help=text, epilog=f"\b\nExample:\n{indent(examples, '  ')}")(command)


_add(options_from_config(compare))
_add(options_from_config(probe, OPTIONS))
_add(estimate)
_add(demo)
_add(report)
_add(export)
_add(inspect)
_add(resize)


def _version(wanted: bool) -> None:
    if wanted:
        from rankwise import __version__

        print(f"rankwise {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Set before transformers is imported: a warning of a library's is not this program's voice.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        # An answer without a minus sign is better than none.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UserError as error:
        code = _fail(str(error), 2)
    except RunError as error:
        code = _fail(str(error), 1)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        code = _fail(f"{error.filename or 'a file'} cannot be used ({error.strerror or error})", 2)
    except TyperException as error:
        code = _fail(" ".join(error.format_message().replace("Value error, ", "").split()), 2)
    if code == 130:
        ignore_interrupts()
    sys.exit(code if isinstance(code, int) else 0)


def _fail(line: str, code: int) -> int:
    print(f"rankwise: {line}", file=sys.stderr)
    return code
