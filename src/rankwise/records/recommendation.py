"""The answer to "which rank?", and what it stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rankwise.records.shown import Shown


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided confidence limits; None where the data allow no limits."""

    mean: float
    low: float | None
    high: float | None


Metric: TypeAlias = Literal["nll", "accuracy"]
Verdict: TypeAlias = Literal["sufficient", "underfits", "unresolved"]
Status: TypeAlias = Literal["resolved", "unresolved", "not_plateaued", "no_gain"]
StopReason: TypeAlias = Literal["plateau", "memory", "data", "budget", "noise", "rank limit", "no plateau"]


@dataclass(frozen=True)
class Needed:
    """Test examples with the seeds there are, or seeds with the examples there are, in all, that would tell.

    With 80 % power to show that the rank in question suffices, if in truth it loses nothing to the reference;
    the other two figures: if it loses half of the margin. None where that alone would not do.
    """

    examples: int | None
    seeds: int | None
    examples_if_half_lost: int | None
    seeds_if_half_lost: int | None


@dataclass(frozen=True)
class Guard:
    """Another metric than the one that decided, at the recommended rank against the largest one.

    `difference` is positive where the recommended rank is better; each limit alone is 95 % sure. `worse` where it is
    shown to lose more than the margin's share of what the largest rank gains in this metric.
    """

    metric: str
    difference: float
    low: float | None
    high: float | None
    worse: bool


@dataclass(frozen=True)
class Doubling:
    """What twice the recommended rank would take more; negative figures are the noise of measuring."""

    trainable_params: int
    training_time_seconds: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Recommendation(Shown):
    """The answer to "which rank?".

    `rank` is the smallest that was shown to suffice, with what it was trained with; None where no rank
    was shown to gain anything. Only with the status *resolved* is every smaller rank that was tried known to be too
    small. `margin` is in the unit of `metric` and `keep` the same as a share of the largest rank's gain, each None
    where it cannot be told. `holds_for` says what was trained, `growing` whether the largest rank's lead still grew at
    the end. `doubling` is None where twice the rank was not compared. `stopped` says why an escalation or a
    ladder trained no further rank; None with a grid.
    """

    status: Status
    rank: int | None
    alpha: float | None
    use_rslora: bool | None
    learning_rate: float | None
    target_modules: str | tuple[str, ...]
    margin: float | None
    keep: float | None
    metric: Metric
    reason: str
    needed: Needed | None
    guards: tuple[Guard, ...]
    doubling: Doubling | None
    growing: bool | None
    holds_for: str
    unknown: tuple[str, ...]
    stopped: StopReason | None
