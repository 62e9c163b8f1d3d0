"""docmatch: does this docstring describe this function body? Built from Python's standard library.

A task with real text that every machine has, for a first comparison without a download. Each function gives one
example, and each body appears once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np

from rankwise.tasks.examples import Examples, build_task
from rankwise.tasks.library import Library, read_library
from rankwise.tasks.source import NO_CAPS, Caps, SplitName
from rankwise.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = ("mismatch", "match")


def load_docmatch(
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    caps: Caps = NO_CAPS,
    split_seed: int = 0,
) -> Task:
    """Build the task: about 4,800 examples with Python 3.11.

    `caps` take the first examples of a split, so that a larger cap adds examples and changes none;
    any even number of them is half positive. `Split.groups` numbers the source files.

    Raises `UserError` where Python was installed without its library's sources.
    """
    library = read_library(split_seed)
    return build_task(
        "docmatch",
        LABELS,
        {
            split: _examples(library, split, caps.get(split), seed=[split_seed, number])
            for number, split in enumerate(get_args(SplitName))
        },
        tokenizer=tokenizer,
        max_length=max_length,
        notes=[library.note],
    )


def _examples(library: Library, split: SplitName, cap: int | None, *, seed: list[int]) -> Examples:
    """One example a function, in random order; each two neighbours are a match and a mismatch.

    The bodies of the mismatches go round among themselves, so none keeps its own.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(library.rows[split])
    coins = generator.integers(2, size=-(-len(order) // 2))
    labels = np.stack([coins, 1 - coins], axis=1).ravel()[: len(order)]
    body_from = order.copy()
    body_from[labels == 0] = np.roll(order[labels == 0], 1)
    return Examples(
        ids=order[:cap],
        texts=[library.functions[row].description for row in order[:cap]],
        pairs=[library.functions[row].body for row in body_from[:cap]],
        labels=labels[:cap],
        groups=library.files[order[:cap]],
    )
