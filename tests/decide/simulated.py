"""Losses of a comparison whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def crossed(
    generator: np.random.Generator,
    seeds: int,
    examples: int,
    *,
    of_seeds: float,
    of_examples: float,
    residual: float,
    mean: float = 0.0,
) -> np.ndarray:
    """(seeds, examples): a mean, a normal effect of each seed, one of each example, and a residual; SDs are given."""
    return (
        mean
        + of_seeds * generator.normal(size=(seeds, 1))
        + of_examples * generator.normal(size=examples)
        + residual * generator.normal(size=(seeds, examples))
    )


def comparison(
    generator: np.random.Generator,
    excess: Sequence[float],
    *,
    gain: float = 0.5,
    seeds: int = 5,
    examples: int = 400,
    of_seeds: float = 0.005,
    of_examples: float = 0.05,
    residual: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (ranks, seeds, examples) and rank 0's: each rank loses `excess` to a reference that gains `gain`."""
    common = generator.gamma(2.0, 0.3, size=examples)  # what makes an example hard, for every rank
    baseline = common + gain + of_examples * generator.normal(size=examples)
    losses = [
        common
        + crossed(generator, seeds, examples, of_seeds=of_seeds, of_examples=of_examples, residual=residual, mean=more)
        for more in excess
    ]
    return np.stack(losses), baseline
