"""How every trial of a comparison is trained; only rank, alpha, learning rate and seed differ between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["linear", "cosine"]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings shared by all trials.

    One optimiser step sees `accumulation` batches of `batch_size` examples. The learning rate warms up
    over `warmup_ratio` of the steps and decays to zero. Each trial's gradient is clipped to the norm
    `max_grad_norm`. `evaluations` is how often validation is scored, evenly spread, the last time at the end.
    """

    steps: int
    batch_size: int = 16
    accumulation: int = 1
    warmup_ratio: float = 0.1
    schedule: Schedule = "linear"
    max_grad_norm: float = 1.0
    evaluations: int = 4
    checkpointing: bool = False

    @property
    def examples_per_step(self) -> int:
        return self.batch_size * self.accumulation

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """
        >>> TrainingSettings(steps=10, evaluations=4).evaluation_steps
        (2, 5, 8, 10)
        """
        count = min(self.evaluations, self.steps)
        return tuple(round(self.steps * (position + 1) / count) for position in range(count))

    @property
    def rungs(self) -> tuple[int, ...]:
        """The evaluation steps from half of the way on: those at which learning rates may be dropped, and the last.

        Earlier, a hard task's losses are those of chance at every rate. Measured on docmatch (200 steps, 3 ranks, 30
        overlapping grids of 2 to 5 rates, means over two seeds): halving from a quarter of the steps on lost the
        rate that was best in the end in 27 of them, at 0.1 nats each; from half of the steps on, in none.

        >>> TrainingSettings(steps=501, evaluations=4).rungs
        (250, 376, 501)
        """
        at = self.evaluation_steps
        return at[(len(at) - 1) // 2 :]

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.steps * self.warmup_ratio)

    def rate_factor(self, step: int) -> float:
        """What multiplies the learning rate at a step counted from 0: transformers' `get_scheduler`."""
        warmup = self.warmup_steps
        if step < warmup:
            return step / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def steps_of_epochs(epochs: float, examples: int, batch_size: int, accumulation: int) -> int:
    """Optimiser steps in which training sees `epochs` times its examples.

    >>> steps_of_epochs(3.0, examples=100, batch_size=16, accumulation=1)
    21
    """
    batches = math.ceil(examples / batch_size)
    return max(1, math.ceil(epochs * batches / accumulation))
