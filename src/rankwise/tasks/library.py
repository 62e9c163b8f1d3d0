"""Python's standard library as data that every machine has: documented functions, split by source file.

Functions are deduplicated: no description and no body comes twice, so that no rank gains by remembering one. They are
split by source file: two files of one package repeat each other's phrases less than two functions of one file do.
"""

from __future__ import annotations

import ast
import gc
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from rankwise.errors import UserError
from rankwise.tasks.source import SplitName
from rankwise.tasks.splits import stratified_split

TEST_SHARE = 0.35  # of all functions: enough examples for the answer to resolve
VALIDATION_SHARE = 0.1  # of all functions

# Tests say what they test, not what they do; the others are not Python's own, or not prose.
_SKIPPED = frozenset(
    ("__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests")
)
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
_SHORTEST, _LONGEST = 20, 200  # characters of a docstring's first paragraph
_FEWEST_FILES = 50  # with any installed library; a zipped one or a bare interpreter has none


@dataclass(frozen=True)
class Function:
    """A documented function: its file, its `def` line, its docstring's first paragraph, its body without it."""

    file: Path
    signature: str
    description: str
    body: str


@dataclass(frozen=True)
class Library:
    """Functions, the number of each one's file, and the rows of each split; `root` is what files are relative to."""

    root: Path
    functions: tuple[Function, ...]
    files: Int[np.ndarray, " functions"]
    rows: Mapping[SplitName, Int[np.ndarray, " split"]]

    @property
    def note(self) -> str:
        """What a user should know of the data."""
        return (
            f"the examples come from the standard library of Python {platform.python_version()}; other versions differ"
        )


def read_library(split_seed: int = 0) -> Library:
    """About 4,800 functions in 320 files with Python 3.11, in a few seconds.

    Raises `UserError` where Python was installed without its library's sources.
    """
    root = library_root()
    # Syntax trees are many objects without cycles: looking for such would take as long as all the rest.
    with _uncollected():
        functions = tuple(read_functions(root))
    if len({function.file for function in functions}) < _FEWEST_FILES:
        raise UserError(
            f"the embedded tasks need the sources of Python's standard library, which {root} lacks; "
            "use a Python installed with its sources, or give data of your own"
        )
    files = np.unique([function.file.as_posix() for function in functions], return_inverse=True)[1]
    one_stratum = np.zeros(len(functions), dtype=np.int64)
    rest, test = stratified_split(one_stratum, TEST_SHARE, split_seed, groups=files)
    train, validation = stratified_split(
        one_stratum[rest], VALIDATION_SHARE / (1 - TEST_SHARE), split_seed, groups=files[rest]
    )
    return Library(root, functions, files, {"train": rest[train], "validation": rest[validation], "test": test})


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector in the `with` block."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def library_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def read_functions(root: Path) -> Iterator[Function]:
    """Documented functions below `root`, in the order of sorted paths; no description and no body comes twice."""
    descriptions: set[str] = set()
    bodies: set[str] = set()
    for path in source_files(root):
        for node in ast.walk(_parse(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            description = _description(node)
            if description is None or description in descriptions:
                continue
            body = ast.unparse(ast.Module(node.body[1:], type_ignores=[]))
            if body not in bodies:
                descriptions.add(description)
                bodies.add(body)
                yield Function(path.relative_to(root), _signature(node), description, body)


def source_files(root: Path) -> list[Path]:
    """Python files below `root` that are Python's own and no tests, sorted."""
    found: list[Path] = []
    for directory, subdirectories, names in os.walk(root):
        # Pruned while walking: site-packages can hold more files than all the rest.
        subdirectories[:] = [name for name in subdirectories if name not in _SKIPPED]
        found.extend(Path(directory, name) for name in names if name.endswith(".py"))
    return sorted(found)


def _parse(path: Path) -> ast.Module:
    """The file's syntax tree; an empty one where the file is not valid Python or cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            return ast.Module([], type_ignores=[])


def _description(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """The docstring's first paragraph, if its length will do and a body is left beside it."""
    docstring = ast.get_docstring(function, clean=False)
    if docstring is None or len(function.body) == 1:
        return None
    paragraph = " ".join(_PARAGRAPH_END.split(docstring.strip(), maxsplit=1)[0].split())
    return paragraph if _SHORTEST <= len(paragraph) <= _LONGEST else None


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The `def` line as one line, without decorators."""
    kind = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = "" if function.returns is None else f" -> {ast.unparse(function.returns)}"
    return f"{kind} {function.name}({ast.unparse(function.args)}){returns}:"
