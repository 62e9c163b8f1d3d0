"""`crossed_interval` against scores whose true mean is known, and against the intervals it must reduce to.

The coverage figures in its docstring are what the simulations here measure.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from rankwise.decide.interval import crossed_interval, over_examples, over_seeds, share_interval, standard_errors
from rankwise.records import Interval

# Eighths, so that a shift or a scale by a power of two rounds nothing.
eighths = st.integers(-40, 40).map(lambda value: value / 8)
crossed_scores = st.tuples(st.integers(2, 5), st.integers(2, 12)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=eighths)
)


def limits(interval: Interval) -> tuple[float, float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.mean, interval.low, interval.high


def t_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """The ordinary interval of a mean, from scipy."""
    assume(np.ptp(values) > 0)
    found = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    return float(values.mean()), found.low, found.high


def covers(interval: Interval, truth: float) -> bool:
    _, low, high = limits(interval)
    return low <= truth <= high


def coverage(
    seeds: int,
    *,
    seed_share: float,
    residual: float = 1.0,
    examples: int = 200,
    cluster_size: int = 1,
    told: bool = True,
    data_sets: int = 4000,
) -> float:
    """The share of simulated data sets whose interval covers the true mean, 0.

    The mean's variance comes from seeds to `seed_share`, from examples (equal within a cluster) for
    the rest. `residual` is the residual's SD in units of both effects' SD on one score. `told` passes
    the clusters on.
    """
    generator = np.random.default_rng(0)
    clusters = np.arange(examples) // cluster_size
    seed_sd = math.sqrt(seed_share * seeds)
    example_sd = math.sqrt((1 - seed_share) * (clusters[-1] + 1))
    hits = 0
    for _ in range(data_sets):
        seed_effects = seed_sd * generator.normal(size=(seeds, 1))
        example_effects = example_sd * generator.normal(size=clusters[-1] + 1)[clusters]
        residuals = residual * math.hypot(seed_sd, example_sd) * generator.normal(size=(seeds, examples))
        scores = seed_effects + example_effects + residuals
        hits += covers(crossed_interval(scores, groups=clusters if told and cluster_size > 1 else None), 0.0)
    return hits / data_sets


@pytest.mark.parametrize("seed_share", [0.98, 0.5, 0.02])
def test_five_seeds_cover_at_the_nominal_level(seed_share: float) -> None:
    assert coverage(5, seed_share=seed_share) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("seeds", "worst"), [(3, 0.92), (2, 0.87)])
def test_fewer_seeds_cover_as_badly_as_the_docstring_admits(seeds: int, worst: float) -> None:
    assert coverage(seeds, seed_share=0.9, residual=0) == pytest.approx(worst, abs=0.01)
    assert coverage(seeds, seed_share=0.1) > 0.94


@pytest.mark.parametrize("clusters", [10, 30])
def test_clusters_of_uneven_size_cover_at_the_nominal_level(clusters: int) -> None:
    """Of lognormal sizes; the sandwich with a cluster for a degree of freedom covers a mean of ten with 83 %."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        sizes = np.ceil(20 * generator.lognormal(-0.5, 1.0, clusters)).astype(int)
        groups = np.repeat(np.arange(clusters), sizes)
        effects = generator.normal(size=clusters)[groups] + generator.normal(size=len(groups))
        scores = effects + 0.3 * generator.normal(size=(3, len(groups)))
        hits += covers(crossed_interval(scores, groups=groups), 0.0)
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_clusters_cover_at_the_nominal_level_and_only_when_told() -> None:
    assert coverage(5, seed_share=0.1, examples=400, cluster_size=20) == pytest.approx(0.95, abs=0.02)
    assert coverage(5, seed_share=0.1, examples=400, cluster_size=20, told=False) < 0.7


def test_pure_residual_noise_is_counted_once() -> None:
    scores = np.random.default_rng(0).normal(size=(200, 40, 40))
    widths = [high - low for _, low, high in (limits(crossed_interval(data)) for data in scores)]
    independent = 2 * stats.norm.ppf(0.975) / 40
    assert independent < np.mean(widths) < 1.2 * independent  # counted twice: 1.41


@given(arrays(np.float64, st.integers(2, 6), elements=eighths), st.integers(2, 9), st.floats(0.5, 0.99))
def test_examples_that_never_differ_leave_the_t_interval_of_the_seeds(
    seed_means: np.ndarray, examples: int, confidence: float
) -> None:
    interval = crossed_interval(np.repeat(seed_means[:, None], examples, axis=1), confidence=confidence)
    assert limits(interval) == pytest.approx(t_interval(seed_means, confidence), abs=1e-10)


@given(arrays(np.float64, st.integers(2, 12), elements=eighths), st.integers(2, 4))
def test_seeds_that_never_differ_leave_the_limits_of_the_examples(scores: np.ndarray, seeds: int) -> None:
    assume(np.ptp(scores) > 0)
    expected = limits(over_examples(scores))
    assert limits(crossed_interval(np.tile(scores, (seeds, 1)))) == pytest.approx(expected, abs=1e-12)


@given(arrays(np.float64, st.integers(2, 8), elements=eighths), st.integers(1, 4))
def test_clusters_that_are_copies_leave_the_limits_of_the_clusters(cluster_means: np.ndarray, size: int) -> None:
    assume(np.ptp(cluster_means) > 0)
    scores = np.tile(np.repeat(cluster_means, size), (3, 1))
    interval = crossed_interval(scores, groups=np.repeat(np.arange(len(cluster_means)), size))
    assert limits(interval) == pytest.approx(limits(over_examples(cluster_means)), abs=1e-12)


@given(crossed_scores, st.integers(0, 2**32))
def test_the_order_of_seeds_and_examples_means_nothing(scores: np.ndarray, seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.permutation(scores.shape[1]) // 2
    seed_order, example_order = (generator.permutation(size) for size in scores.shape)
    assume(groups.any())
    once = crossed_interval(scores, groups=groups)
    again = crossed_interval(scores[seed_order][:, example_order], groups=groups[example_order])
    assert limits(again) == pytest.approx(limits(once), rel=1e-9, abs=1e-12)


@given(crossed_scores, eighths, st.sampled_from([-4.0, -1.0, 0.25, 8.0]))
def test_limits_move_and_stretch_with_the_scores(scores: np.ndarray, shift: float, scale: float) -> None:
    mean, low, high = limits(crossed_interval(scores))
    ends = sorted(end * scale + shift for end in (low, high))
    assert limits(crossed_interval(scores * scale + shift)) == pytest.approx((mean * scale + shift, *ends), abs=1e-9)


@given(crossed_scores)
def test_clusters_of_one_example_are_no_clusters(scores: np.ndarray) -> None:
    names = np.arange(scores.shape[1])[::-1] * 7 - 3
    assert limits(crossed_interval(scores, groups=names)) == pytest.approx(limits(crossed_interval(scores)), abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 50), None), ((1, 1), None), ((5, 1), None), ((5, 50), np.zeros(50, dtype=int))],
    ids=["one seed", "one score", "one example", "one cluster"],
)
def test_no_limits_are_claimed_from(shape: tuple[int, int], groups: np.ndarray | None) -> None:
    scores = np.random.default_rng(0).normal(size=shape)
    interval = crossed_interval(scores, groups=groups)
    assert interval.mean == pytest.approx(scores.mean())
    assert interval.low is interval.high is None


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.0])
def test_equal_scores_have_no_width(value: float) -> None:
    assert crossed_interval(np.full((3, 7), value)) == Interval(value, value, value)


@pytest.mark.parametrize(
    ("scores", "groups", "confidence"),
    [
        (np.array([[0.5, np.nan], [0.5, 0.5]]), None, 0.95),
        (np.array([[0.5, np.inf], [0.5, 0.5]]), None, 0.95),
        (np.zeros((3, 0)), None, 0.95),
        (np.zeros(4), None, 0.95),
        (np.zeros((3, 4)), np.zeros(3, dtype=int), 0.95),
        (np.zeros((3, 4)), None, 95.0),
    ],
    ids=["nan", "infinite", "empty", "one axis", "groups of another length", "confidence in percent"],
)
def test_scores_that_cannot_be_averaged_are_refused(
    scores: np.ndarray, groups: np.ndarray | None, confidence: float
) -> None:
    with pytest.raises((ValueError, TypeError)):  # TypeError: jaxtyping, which sees shapes before the function does
        crossed_interval(scores, groups=groups, confidence=confidence)


@given(arrays(np.float64, st.integers(2, 9), elements=eighths), st.floats(0.5, 0.99))
def test_over_seeds_alone_the_limits_are_student_s(values: np.ndarray, confidence: float) -> None:
    expected = t_interval(values, confidence)
    assert limits(over_seeds(values, confidence=confidence)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("values", [[0.3], [0.1, 0.1, 0.1]])
def test_over_seeds_that_do_not_vary_there_are_no_limits(values: list[float]) -> None:
    interval = over_seeds(np.array(values), confidence=0.9)
    assert (interval.low, interval.high) == (None, None)


@given(arrays(np.float64, st.integers(1, 6), elements=eighths), st.floats(0.5, 0.99))
def test_of_examples_that_are_not_skewed_the_limits_are_student_s(half: np.ndarray, confidence: float) -> None:
    values = np.concatenate([half, -half]) + 3
    expected = t_interval(values, confidence)
    assert limits(over_examples(values, confidence=confidence)) == pytest.approx(expected, abs=1e-10)


@given(arrays(np.float64, st.integers(3, 12), elements=eighths), st.floats(0.5, 0.99))
def test_the_limit_on_the_side_of_the_long_tail_alone_lies_beyond_student_s(
    values: np.ndarray, confidence: float
) -> None:
    skewness = float(((values - values.mean()) ** 3).sum())
    assume(abs(skewness) > 1e-6)
    _, low, high = limits(over_examples(values, confidence=confidence))
    _, t_low, t_high = t_interval(values, confidence)
    longer, shorter = (high - t_high, t_low - low) if skewness > 0 else (t_low - low, high - t_high)
    assert longer > 0
    assert shorter == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("examples", [20, 100, 400, 2000])
@pytest.mark.parametrize("failures", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_of_rare_failures_the_upper_limit_is_that_of_the_binomial_distribution(
    examples: int, failures: int, confidence: float
) -> None:
    """Student's limit of one failure is at 57 % of it."""
    failed = (np.arange(examples) < failures).astype(float)
    exact = stats.binomtest(failures, examples).proportion_ci(confidence, method="exact").high
    _, low, high = limits(over_examples(failed, confidence=confidence))
    assert 0.94 < high / exact < (1.17 if failures == 1 else 1.06)
    assert limits(over_examples(1 - failed, confidence=confidence)) == pytest.approx(
        (1 - failed.mean(), 1 - high, 1 - low)
    )


@pytest.mark.parametrize("skewness", [-1.0, -0.2, 0.0, 0.2, 1.0])
@pytest.mark.parametrize("freedom", [1.0, 4.0, 1e6])
def test_a_surer_limit_is_farther_out_and_no_nearer_than_student_s(skewness: float, freedom: float) -> None:
    levels = [0.51, 0.6, 0.8, 0.9, 0.95, 0.975, 0.995, 0.9999, 0.999999]
    found = [float(standard_errors(level, freedom, skewness)) for level in levels]
    assert found == sorted(found)
    assert all(one >= stats.t.ppf(level, freedom) for one, level in zip(found, levels, strict=True))
    assert math.isfinite(found[-1])


@pytest.mark.parametrize("level", [0.5, 0.6, 0.9, 0.95, 0.99])
def test_a_little_skewness_moves_a_limit_as_edgeworth_s_expansion_has_it(level: float) -> None:
    """Of a mean in units of its own error: Hall 1992, "The Bootstrap and Edgeworth Expansion", section 2.6."""
    z, little = float(stats.norm.ppf(level)), 0.003
    assert float(standard_errors(level, 1e12, little)) - z == pytest.approx(little * (1 + 2 * z**2) / 6, rel=0.02)


def test_what_seeds_cause_counts_as_even() -> None:
    """The skewness of a mean is its third cumulant, to which examples alone add, over the variance to the 1.5."""
    generator = np.random.default_rng(0)
    examples, seeds = generator.exponential(size=30), generator.normal(size=4)
    scores = examples + 0.4 * seeds[:, None]
    of_examples = examples.var(ddof=1) / 30
    variance = of_examples + 0.4**2 * seeds.var(ddof=1) / 4
    third = ((examples - examples.mean()) ** 3).sum() * (examples.var(ddof=1) / examples.var()) ** 1.5 / 30**3
    freedom = 1 / (((variance - of_examples) / variance) ** 2 / 3 + (of_examples / variance) ** 2 / 29)
    mean, low, high = limits(crossed_interval(scores))
    for end, sign in ((high, 1), (low, -1)):
        distance = standard_errors(0.975, freedom, sign * third / variance**1.5)
        assert (end - mean) * sign == pytest.approx(float(distance) * math.sqrt(variance), rel=1e-9)


def test_the_skewness_of_clusters_is_that_of_leaving_each_out() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(5), [40, 10, 3, 3, 1])
    values = generator.exponential(size=5)[groups] + 0.1 * generator.normal(size=57)
    without = np.array([values[groups != group].mean() for group in range(5)])
    moves = values.mean() - without
    variance, skewness = 4 / 5 * (moves**2).sum(), (moves**3).sum() / (moves**2).sum() ** 1.5
    freedom = 57**2 / (np.bincount(groups) ** 2).sum() - 1
    mean, low, high = limits(over_examples(values, groups=groups))
    for end, sign in ((high, 1), (low, -1)):
        distance = float(standard_errors(0.975, freedom, sign * skewness)) * math.sqrt(variance)
        assert (end - mean) * sign == pytest.approx(distance, rel=1e-9)


def test_losses_that_a_few_examples_carry_are_seldom_missed() -> None:
    """Three in a hundred lose 2 nats: by Student's t the upper limit lies below the truth in 8 % of samples, not 5."""
    generator = np.random.default_rng(0)
    missed = by_t = 0
    for _ in range(2000):
        lost = 2.0 * (generator.random(500) < 0.03) + 0.05 * generator.normal(size=(3, 500))
        _, _, high = limits(crossed_interval(lost, confidence=0.9))
        missed += high < 0.06
        by_t += stats.ttest_1samp(lost.mean(axis=0), 0).confidence_interval(0.9).high < 0.06
    assert missed / 2000 < 0.06
    assert by_t / 2000 > 0.07


@given(crossed_scores)
def test_over_clusters_of_one_adapter_is_what_seeds_that_agree_leave(scores: np.ndarray) -> None:
    groups = np.arange(scores.shape[1]) // 2 * 3
    assume(np.ptp(scores[0]) > 0 and groups.any())
    crossed = crossed_interval(np.tile(scores[0], (2, 1)), groups=groups)
    assert limits(over_examples(scores[0], groups=groups)) == pytest.approx(limits(crossed), abs=1e-10)


def test_over_examples_has_no_limits_where_nothing_varies() -> None:
    assert over_examples(np.full(9, 0.25)) == Interval(0.25, None, None)
    assert over_examples(np.array([0.25, 0.75]), groups=np.array([4, 4])) == Interval(0.5, None, None)


@given(arrays(np.float64, st.tuples(st.integers(2, 4), st.integers(2, 9)), elements=st.floats(0, 1)))
def test_a_share_s_limits_are_shares(scores: np.ndarray) -> None:
    share, free = share_interval(scores), crossed_interval(scores)
    assert share.mean == free.mean
    if np.ptp(scores) == 0:
        assert (share.low, share.high) == (None, None)
    elif share.low is not None and share.high is not None:
        assert 0 <= share.low <= share.mean <= share.high <= 1
        assert (share.low, share.high) == tuple(np.clip([free.low, free.high], 0, 1))


def test_a_cluster_of_nearly_all_examples_gives_no_limits() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 100))
    sizes = np.arange(100)
    assert crossed_interval(scores, groups=(sizes >= 90).astype(int)).low is None
    assert crossed_interval(scores, groups=(sizes >= 89).astype(int)).low is not None
    assert over_examples(scores[0], groups=(sizes >= 90).astype(int)).low is None
