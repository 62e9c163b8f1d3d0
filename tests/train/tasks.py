"""A small task of random tokens whose label a model can learn: the mean of its token numbers, in bins."""

from __future__ import annotations

import numpy as np

from rankwise.tasks.task import Ragged, Split, Task
from tests.models import VOCABULARY


def token_task(*, train: int = 96, held_out: int = 32, longest: int = 12, labels: int = 2, seed: int = 0) -> Task:
    generator = np.random.default_rng(seed)

    def split(size: int) -> Split:
        rows = [generator.integers(4, VOCABULARY, generator.integers(3, longest + 1)).tolist() for _ in range(size)]
        classes = np.array([sum(row) // len(row) * labels // VOCABULARY for row in rows]).clip(0, labels - 1)
        return Split(np.arange(size), Ragged.from_rows(rows), None, classes)

    names = tuple(f"label {number}" for number in range(labels))
    return Task("tokens", names, labels, split(train), split(held_out), split(held_out), pad_token_id=0)
