"""docmatch: does this docstring describe this function body? Built from Python's standard library.

A task with real text that every machine has, for a first comparison without a download. Functions are
deduplicated and split by source file: two files of one package repeat each other's phrases less than two
functions of one file do. Each function gives one example, and each body appears once, so that no
rank gains by remembering a docstring or a body.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankwise.errors import UserError
from rankwise.tasks.examples import Examples, build_task
from rankwise.tasks.splits import stratified_split
from rankwise.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = ("mismatch", "match")
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
    """A documented function: the file it is in, its docstring's first paragraph, its body without it."""

    file: Path
    description: str
    body: str


def load_docmatch(
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    train_examples: int | None = None,
    validation_examples: int | None = None,
    test_examples: int | None = None,
    split_seed: int = 0,
) -> Task:
    """Build the task: about 4,800 examples in 320 files with Python 3.11, in a few seconds.

    The caps take the first examples of a split, so that a larger cap adds examples and changes none;
    any even number of them is half positive. `Split.groups` numbers the source files.

    Raises `UserError` where Python was installed without its library's sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    functions = list(read_functions(root))
    if len({function.file for function in functions}) < _FEWEST_FILES:
        raise UserError(
            f"docmatch needs the sources of Python's standard library, which {root} lacks; "
            "use a Python installed with its sources, or give data of your own"
        )
    files = np.unique([function.file.as_posix() for function in functions], return_inverse=True)[1]
    one_stratum = np.zeros(len(functions), dtype=np.int64)
    rest, test = stratified_split(one_stratum, TEST_SHARE, split_seed, groups=files)
    train, validation = stratified_split(
        one_stratum[rest], VALIDATION_SHARE / (1 - TEST_SHARE), split_seed, groups=files[rest]
    )
    return build_task(
        "docmatch",
        LABELS,
        {
            "train": _examples(functions, files, rest[train], train_examples, seed=[split_seed, 0]),
            "validation": _examples(functions, files, rest[validation], validation_examples, seed=[split_seed, 1]),
            "test": _examples(functions, files, test, test_examples, seed=[split_seed, 2]),
        },
        tokenizer=tokenizer,
        max_length=max_length,
        notes=[
            f"docmatch comes from the standard library of Python {platform.python_version()}; other versions differ"
        ],
    )


def read_functions(root: Path) -> Iterator[Function]:
    """Documented functions below `root`, in the order of sorted paths; no description and no body comes twice."""
    descriptions: set[str] = set()
    bodies: set[str] = set()
    for path in _source_files(root):
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
                yield Function(path.relative_to(root), description, body)


def _source_files(root: Path) -> list[Path]:
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


def _examples(
    functions: Sequence[Function], files: np.ndarray, members: np.ndarray, cap: int | None, *, seed: list[int]
) -> Examples:
    """One example a function, in random order; each two neighbours are a match and a mismatch.

    The bodies of the mismatches go round among themselves, so none keeps its own.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(members)
    coins = generator.integers(2, size=-(-len(order) // 2))
    labels = np.stack([coins, 1 - coins], axis=1).ravel()[: len(order)]
    body_from = order.copy()
    body_from[labels == 0] = np.roll(order[labels == 0], 1)
    return Examples(
        ids=order[:cap],
        texts=[functions[row].description for row in order[:cap]],
        pairs=[functions[row].body for row in body_from[:cap]],
        labels=labels[:cap],
        groups=files[order[:cap]],
    )
