"""How many seeds or examples would tell.

The variances that a comparison has shown are themselves uncertain, with three seeds by a factor of
several. A size computed as if they were known would fail far more often than it says. So power is
averaged over what the variances may be: over the chi-square distribution of each estimate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import chdtri, ndtr

from rankwise.decide.interval import CrossedMean, satterthwaite, standard_errors

POWER = 0.8
_MOST_SEEDS = 1000
_MOST_EXAMPLES = 10_000_000
_QUANTILES = (np.arange(8) + 0.5) / 8


def needed_seeds(contrast: CrossedMean, true_mean: float, confidence: float) -> int | None:
    """The seeds, in all, with which an upper limit below 0 is shown with 80 % power on the same examples.

    `true_mean` is what the contrast is assumed to be in truth, below 0. None where more than a thousand
    would be needed: the examples alone forbid it then, or nearly.
    """
    return _smallest(
        lambda seeds: power(contrast, true_mean, confidence, seeds=seeds, scale=1.0), contrast.seeds, _MOST_SEEDS
    )


def needed_examples(contrast: CrossedMean, true_mean: float, confidence: float) -> int | None:
    """The examples, in all, that would show it with the same seeds; None where no number of them would."""
    seeds, there = contrast.seeds, contrast.examples
    return _smallest(
        lambda examples: power(contrast, true_mean, confidence, seeds=seeds, scale=examples / there),
        there,
        _MOST_EXAMPLES,
    )


def power(contrast: CrossedMean, true_mean: float, confidence: float, *, seeds: int, scale: float) -> float:
    """The chance that the one-sided upper limit lies below 0 with `seeds` seeds and `scale` times the examples.

    What is there already is part of the larger comparison, its luck too: given the mean that was seen,
    the new one is normal around `true + (seen - true)·V/V_seen` with variance `V·(1 - V/V_seen)`, V being
    the variance of the larger comparison's mean. Averaged over the uncertainty of both sources' variances
    and over that of the new standard error. 0 with one seed, and where the true mean is not below 0. Skewness is
    taken for what it was seen to be: where few of the examples that carry the mean are known yet, the power is less.

    Source: conditional power, Lachin 2005, Statistics in Medicine 24; averaging over a pilot's variance:
    Julious & Owen 2006, Pharmaceutical Statistics 5.
    """
    if seeds < 2 or true_mean >= 0 or contrast.from_seeds is None:
        return 0.0
    assert contrast.from_examples is not None
    assert contrast.shared is not None
    residual = contrast.shared * contrast.seeds * contrast.clusters
    # What each mean square may be in truth, less the residual's share, is the source's own variance.
    of_seeds, of_clusters, luck = np.meshgrid(
        contrast.from_seeds * contrast.seeds * _factors(contrast.seeds - 1) - residual / contrast.clusters,
        contrast.from_examples * contrast.clusters * _factors(contrast.clusters - 1) - residual / contrast.seeds,
        _QUANTILES,
    )
    of_seeds, of_clusters = np.maximum(of_seeds, 0), np.maximum(of_clusters, 0)

    def sources(seeds: int, clusters: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What seeds and examples cause of the variance of a mean, and the variance."""
        shared = residual / (seeds * clusters)
        variance = of_seeds / seeds + of_clusters / clusters + shared
        return of_seeds / seeds + shared, of_clusters / clusters + shared, variance

    clusters = contrast.clusters * scale
    _, _, seen = sources(contrast.seeds, float(contrast.clusters))
    from_seeds, from_examples, variance = sources(seeds, clusters)
    if not variance.all():
        return 1.0
    freedom = satterthwaite(from_seeds, seeds, from_examples, clusters, variance)
    standard_error = np.sqrt(variance * chdtri(freedom, luck) / freedom)
    skewness = contrast.skewness / scale**0.5 * (from_examples / variance) ** 1.5
    limit = standard_errors(confidence, freedom, skewness) * standard_error
    mean = true_mean + (contrast.mean - true_mean) * variance / seen
    spread = np.sqrt(variance * np.maximum(1 - variance / seen, 1e-12))
    return float(ndtr((-limit - mean) / spread).mean())


def _factors(freedom: int | float) -> Float[np.ndarray, " quantiles"]:
    """What a variance estimated with `freedom` degrees of freedom may be in truth, as multiples of the estimate."""
    return freedom / chdtri(freedom, _QUANTILES)


def _smallest(power_of: Callable[[int], float], start: int, most: int) -> int | None:
    """The smallest number above `start` with enough power; power grows with it."""
    low, high = start, start + 1
    while power_of(high) < POWER:
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= POWER else (middle, high)
    return high
