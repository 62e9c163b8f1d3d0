"""Groups: which examples belong together, such as those of a document, by a column of the data.

Examples of a group resemble each other. So none is split between train, validation and test, and the limits of what is
measured count groups: a hundred examples of one document tell less than a hundred of as many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from rankwise.errors import UserError
from rankwise.tasks.source import without_fraction
from rankwise.tasks.task import Task

FEWEST_TESTED = 2  # groups: of one there are no limits
_MOST_OF_ONE = 0.9  # of the test examples: nor are there of such a group and a few beside it


def group_numbers(names: Sequence[str]) -> Int64[np.ndarray, " examples"]:
    """A number for each name, the same in every source: 1.0 counts as 1, and space around a name as nothing.

    64-bit hashes: among a million groups two different ones share one with a probability of 3e-8.
    """
    plain = (without_fraction(name.strip()) for name in names)
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in plain)
    return np.frombuffer(b"".join(digests), dtype=np.int64)


def told_of_groups(task: Task) -> Task:
    """The task with a note on the groups of its test examples, where it has any.

    Raises `UserError` where they are too few for limits.
    """
    if task.test.groups is None:
        return task
    sizes = np.unique(task.test.groups, return_counts=True)[1]
    groups = len(sizes)
    if sizes.max() >= _MOST_OF_ONE * len(task.test):
        most = "all" if groups == 1 else f"{sizes.max():,} of"
        raise UserError(
            f"{most} {len(task.test):,} test examples are of one group, and limits count groups; "
            "give test examples of more groups, or leave out --group"
        )
    return replace(
        task,
        notes=(*task.notes, f"limits count the {groups:,} groups that the {len(task.test):,} test examples are of"),
    )
