"""docstrings: what does this function do, in a line? Built from Python's standard library, for language models.

The prompt is a function's body and then its `def` line, so what comes next is its docstring, as it is in any source
file; the completion is the first paragraph of that. A body that is too long loses its beginning and never the `def`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from rankwise.tasks.examples import Examples
from rankwise.tasks.learned import build_learned_task
from rankwise.tasks.library import Function, Library, read_library
from rankwise.tasks.retained import cut_into_pieces
from rankwise.tasks.source import NO_CAPS, Caps, SplitName
from rankwise.tasks.task import Split, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RETAINED = 2000  # characters of each file that are scored to see what is forgotten
_QUOTES = '"""'


def load_docstrings(
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    caps: Caps = NO_CAPS,
) -> Task:
    """Build the task: about 4,800 examples with Python 3.11; what is retained is source code of the validation files.

    `caps` take the first examples of a split. `Split.groups` numbers the source files.

    Raises `UserError` where Python was installed without its library's sources.
    """
    library = read_library()
    names = enumerate(get_args(SplitName))
    task = build_learned_task(
        "docstrings",
        {split: _examples(library, split, caps.get(split), seed=number) for number, split in names},
        tokenizer=tokenizer,
        max_length=max_length,
        notes=[library.note],
    )
    return replace(task, retained=_source_code(library, tokenizer, max_length))


def _source_code(library: Library, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Split:
    files = sorted({library.functions[row].file for row in library.rows["validation"]})
    texts = [(library.root / file).read_text(encoding="utf-8", errors="replace")[:_RETAINED] for file in files]
    return cut_into_pieces(texts, tokenizer, max_length)


def _examples(library: Library, split: SplitName, cap: int | None, *, seed: int) -> Examples:
    rows = np.random.default_rng(seed).permutation(library.rows[split])[:cap]
    texts: list[str] = []
    spans: list[tuple[tuple[int, int], ...]] = []
    for function in (library.functions[row] for row in rows):
        prompt = _prompt(function)
        texts.append(f"{prompt}{function.description}{_QUOTES}")
        spans.append(((len(prompt), len(texts[-1])),))
    return Examples(
        ids=rows, texts=texts, pairs=None, labels=np.zeros_like(rows), groups=library.files[rows], spans=spans
    )


def _prompt(function: Function) -> str:
    return f"{function.body}\n\n{function.signature}\n    {_QUOTES}"
