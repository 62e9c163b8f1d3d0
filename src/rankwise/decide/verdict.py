"""The smallest sufficient rank, from per-example losses.

Everything is measured against the largest rank, the reference. First the gate: does it gain anything
over rank 0? Then a walk from it downwards: a rank is *sufficient* while it is shown to lose less than
the margin, in a fixed order, so that no correction for many comparisons is needed; below the first rank
that is not shown to suffice nothing is called sufficient. A second walk, from the smallest rank up, shows
which ranks lose more than the margin: they *underfit*. What neither walk reaches is *unresolved*. Where a
rank is better than the reference, what is recommended must suffice beside that one, too.

"Not significantly different" is never read as "equal": few data leave ranks unresolved, not small ones
recommended. Pure: numpy and scipy, arrays in, verdicts out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rankwise.decide.bootstrap import crossed_bootstrap
from rankwise.decide.interval import CrossedMean, crossed_mean, over_seeds
from rankwise.decide.power import needed_examples, needed_seeds
from rankwise.records import Interval, Needed, Status, Verdict

CONFIDENCE = 0.95  # of each limit alone; both limits of an interval together are 90 % sure
_RESAMPLES = 2000

Scores = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class Margin:
    """The loss of quality that the user calls nothing.

    A share of the reference rank's gain over rank 0 (a sufficient rank *keeps* at least `keep` of it),
    or, where `absolute` is given, a figure in the unit of the losses.
    """

    keep: float = 0.95
    absolute: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must lie between 0 and 1, not {self.keep}")
        if self.absolute is not None and not 0 < self.absolute < float("inf"):
            raise ValueError(f"a margin must be above 0, not {self.absolute}")


@dataclass(frozen=True)
class RankVerdict:
    """One rank against the reference. `difference` is positive where it is better, `beyond` what it loses more than
    the margin; their limits are one-sided.

    `contradicted` where the crossed bootstrap does not confirm the verdict.
    """

    rank: int
    verdict: Verdict
    difference: Interval
    beyond: Interval
    contradicted: bool


@dataclass(frozen=True)
class Decision:
    """The answer; losses, gains and margins in the unit of the losses.

    `rank` is the smallest that is shown to suffice, beside ranks that are better than the reference as well: the
    reference itself where no smaller one is, None where not even its gain is shown. `margin` and `keep` are the same
    margin in both units, None where there is no gain to share. `gain` is the reference's over rank 0, with one-sided
    limits. `better` are the ranks that are better than the reference. `growing` tells whether the reference's lead over
    `rank` (or, where that is the reference, over the next smaller one) was still growing when training ended; None
    where that cannot be told. `missing` are the ranks that were tried and cannot be judged.
    """

    status: Status
    rank: int | None
    verdicts: tuple[RankVerdict, ...]
    gain: Interval
    margin: float | None
    keep: float | None
    better: tuple[int, ...]
    growing: bool | None
    needed: Needed | None
    missing: tuple[int, ...]


def decide(
    losses: Float[np.ndarray, "ranks seeds examples"],
    baseline: Float[np.ndarray, " examples"],
    *,
    ranks: Sequence[int],
    margin: Margin = Margin(),
    groups: Int[np.ndarray, " examples"] | None = None,
    validation: Float[np.ndarray, "ranks seeds evaluations"] | None = None,
    missing: Sequence[int] = (),
    confidence: float = CONFIDENCE,
    resamples: int = _RESAMPLES,
) -> Decision:
    """Judge every rank against the largest one.

    `losses` are per-example losses on test, lower is better, of `ranks` in ascending order; `baseline` those of rank 0.
    `groups` numbers each example's cluster. `validation` are mean losses on validation, in the order of training.
    `missing` are ranks that were tried and have no losses: what they would have lost is not known.

    Source of the walk: fixed-sequence tests, Westfall & Krishen 2001, Journal of Statistical Planning and Inference 99;
    of the shown margin: Piaggio et al. 2012, JAMA 308 (CONSORT for non-inferiority).

    Raises ValueError for losses that are not finite, for shapes that do not fit, and for ranks that do not ascend.
    """
    _check(losses, baseline, ranks, groups, validation, confidence)
    losses, baseline = losses.astype(np.float64), baseline.astype(np.float64)
    reference = losses[-1]
    alone = _Limits(confidence)
    among_all = _Limits(1 - (1 - confidence) / max(1, len(ranks) - 1))  # Bonferroni

    def mean(scores: Float[np.ndarray, "seeds examples"]) -> CrossedMean:
        return crossed_mean(scores, groups=groups)

    gained = mean(baseline - reference)
    gain, gains = alone.of(gained), alone.above_zero(gained)
    differences = [mean(reference - rank_losses) for rank_losses in losses]
    better = tuple(
        rank for rank, difference in zip(ranks, differences, strict=True) if among_all.above_zero(difference)
    )
    contrasts = [mean(shortfall(rank_losses, reference, baseline, margin)) for rank_losses in losses]
    verdicts: list[Verdict] = ["unresolved"] * len(ranks)
    if gains:
        # A share of the gain varies with the gain. Ranks that answer all examples alike tell nothing of others.
        verdicts = _walk(
            [each if of.variance else None for each, of in zip(contrasts, differences, strict=True)], alone
        )
    contradicted = _contradicted(losses, baseline, margin, groups, verdicts, confidence, resamples)

    def suffices_beside_better(index: int) -> bool:
        above = (losses[other] for other, rank in enumerate(ranks) if other > index and rank in better)
        return all(alone.below_zero(mean(shortfall(losses[index], of, baseline, margin))) for of in above)

    smallest = None
    if gains:
        sufficient = range(verdicts.index("sufficient"), len(ranks))
        smallest = next(index for index in sufficient if suffices_beside_better(index))
    lost = margin.absolute if margin.absolute is not None else (1 - margin.keep) * gain.mean
    growing = None if validation is None else _growing(validation, smallest, lost, confidence)

    status: Status
    if not gains:
        another = any(among_all.above_zero(mean(baseline - rank_losses)) for rank_losses in losses[:-1])
        status = "no_gain" if gained.variance and not another else "unresolved"
    elif len(ranks) > 1 and verdicts[-2] == "underfits":
        status = "not_plateaued"
    else:
        # Resolved only where the next smaller rank is told to be too small, or none was tried.
        assert smallest is not None
        told = smallest == 0 or verdicts[smallest - 1] == "underfits"
        below = ranks[smallest - 1] if smallest else 0
        gap = any(below < rank < ranks[smallest] for rank in missing)
        status = "resolved" if told and not gap and len(ranks) > 1 and not growing else "unresolved"
    needed = None
    # Of one that loses more, and is not called too small because a smaller one cannot be told, no size would show it.
    if (
        smallest
        and verdicts[smallest - 1] == "unresolved"
        and differences[smallest - 1].variance
        and not alone.above_zero(contrasts[smallest - 1])
    ):
        needed = _needed(contrasts[smallest - 1], lost, confidence)
    return Decision(
        status=status,
        rank=None if smallest is None else ranks[smallest],
        verdicts=tuple(
            RankVerdict(rank, verdict, alone.of(difference), alone.of(contrast), odd)
            for rank, verdict, difference, contrast, odd in zip(
                ranks, verdicts, differences, contrasts, contradicted, strict=True
            )
        ),
        gain=gain,
        margin=lost if gains or margin.absolute is not None else None,
        keep=1 - lost / gain.mean if gains else None,
        better=better,
        growing=growing,
        needed=needed,
        missing=tuple(missing),
    )


def shortfall(losses: Scores, reference: Scores, baseline: Scores, margin: Margin) -> Scores:
    """What a rank loses to the reference beyond the margin: its mean is below 0 where the rank suffices.

    A plain contrast also where the margin is a share of a gain that is itself uncertain, so it serves
    scores of examples and means of resamples alike.
    """
    allowed = (1 - margin.keep) * (baseline - reference) if margin.absolute is None else margin.absolute
    beyond: Scores = losses - reference - allowed
    return beyond


@dataclass(frozen=True)
class _Limits:
    """One-sided limits at one confidence. Scores without any variance are no evidence: they give none."""

    confidence: float

    def of(self, mean: CrossedMean) -> Interval:
        return mean.interval(2 * self.confidence - 1)

    def above_zero(self, mean: CrossedMean) -> bool:
        low = self.of(mean).low
        return bool(mean.variance) and low is not None and low > 0

    def below_zero(self, mean: CrossedMean) -> bool:
        high = self.of(mean).high
        return bool(mean.variance) and high is not None and high < 0


def _walk(contrasts: Sequence[CrossedMean | None], limits: _Limits) -> list[Verdict]:
    """Both walks; each stops at the first rank that it cannot tell, so each is wrong at most as often as one test.

    A rank without a contrast cannot be told.
    """
    verdicts: list[Verdict] = ["unresolved"] * len(contrasts)
    verdicts[-1] = "sufficient"  # the reference, by its gain
    for index in reversed(range(len(contrasts) - 1)):
        contrast = contrasts[index]
        if contrast is None or not limits.below_zero(contrast):
            break
        verdicts[index] = "sufficient"
    for index, contrast in enumerate(contrasts[:-1]):
        if contrast is None or not limits.above_zero(contrast):
            break
        verdicts[index] = "underfits"
    return verdicts


def _contradicted(
    losses: Float[np.ndarray, "ranks seeds examples"],
    baseline: Float[np.ndarray, " examples"],
    margin: Margin,
    groups: Int[np.ndarray, " examples"] | None,
    verdicts: Sequence[Verdict],
    confidence: float,
    resamples: int,
) -> list[bool]:
    """Whether the crossed bootstrap's percentile limit does not confirm a verdict."""
    if set(verdicts[:-1]) <= {"unresolved"}:
        return [False] * len(verdicts)
    everyone = np.concatenate([losses, np.broadcast_to(baseline, (1, *losses.shape[1:]))])
    means = crossed_bootstrap(everyone, groups=groups, resamples=resamples)
    contrasts = shortfall(means[:, :-1].T, means[:, -2], means[:, -1], margin)
    low, high = np.quantile(contrasts, (1 - confidence, confidence), axis=1)
    unconfirmed = {"sufficient": high >= 0, "underfits": low <= 0, "unresolved": np.zeros(len(verdicts), dtype=bool)}
    return [bool(unconfirmed[verdict][index]) for index, verdict in enumerate(verdicts[:-1])] + [False]


def _growing(
    validation: Float[np.ndarray, "ranks seeds evaluations"], smallest: int | None, margin: float, confidence: float
) -> bool | None:
    """Whether the reference still draws away from the smallest sufficient rank (or, where it is that itself, the next).

    Its lead grew from the last evaluation but one to the last, sure over seeds, and as much again would
    exceed the margin.
    """
    ranks, seeds, evaluations = validation.shape
    rival = ranks - 2 if smallest in (None, ranks - 1) else smallest
    if rival is None or ranks < 2 or seeds < 2 or evaluations < 2 or not np.isfinite(validation[[rival, -1]]).all():
        return None
    lead = validation[rival] - validation[-1]
    growth = lead[:, -1] - lead[:, -2]
    low = over_seeds(growth, confidence=2 * confidence - 1).low
    return None if low is None else low > 0 and bool(lead[:, -1].mean() + growth.mean() > margin)


def _needed(contrast: CrossedMean, margin: float, confidence: float) -> Needed | None:
    """What would show the rank to suffice if it loses nothing, and if it loses half of the margin."""
    needed = Needed(
        examples=needed_examples(contrast, -margin, confidence),
        seeds=needed_seeds(contrast, -margin, confidence),
        examples_if_half_lost=needed_examples(contrast, -margin / 2, confidence),
        seeds_if_half_lost=needed_seeds(contrast, -margin / 2, confidence),
    )
    return None if needed.examples is None and needed.seeds is None else needed


def _check(
    losses: Float[np.ndarray, "ranks seeds examples"],
    baseline: Float[np.ndarray, " examples"],
    ranks: Sequence[int],
    groups: Int[np.ndarray, " examples"] | None,
    validation: Float[np.ndarray, "ranks seeds evaluations"] | None,
    confidence: float,
) -> None:
    if losses.ndim != 3 or losses.size == 0:
        raise ValueError(f"losses must have shape (ranks, seeds, examples), not {losses.shape}")
    expected = {"baseline": (baseline, losses.shape[2:]), "groups": (groups, losses.shape[2:])}
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, not {array.shape}")
    if validation is not None and validation.shape[:2] != losses.shape[:2]:
        raise ValueError(f"validation must have shape {(*losses.shape[:2], 'evaluations')}, not {validation.shape}")
    if len(ranks) != len(losses) or list(ranks) != sorted(set(ranks)) or ranks[0] < 1:
        raise ValueError(f"ranks must be {len(losses)} ascending whole numbers from 1, not {list(ranks)}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must lie between 0.5 and 1, not {confidence}")
    for rank, rank_losses in [*zip(ranks, losses, strict=True), (0, baseline)]:
        if not np.isfinite(rank_losses).all():
            raise ValueError(f"a loss of rank {rank} is not finite: leave the rank out, or find out why")
