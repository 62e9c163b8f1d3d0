"""A decision in sentences that a person can repeat."""

from __future__ import annotations

from rankwise.decide.verdict import Decision, RankVerdict
from rankwise.records import Interval, Metric, Needed


def reason(decision: Decision, metric: Metric) -> str:
    """Why this is the answer: what was shown, how sure, and what would tell where the data cannot."""
    verdicts = decision.verdicts
    reference = verdicts[-1].rank
    if decision.rank is None:
        return _without_rank(decision, metric)
    chosen = next(index for index, verdict in enumerate(verdicts) if verdict.rank == decision.rank)
    margin = _margin(decision, metric)
    parts = []
    if len(verdicts) == 1:
        return f"only r={reference} was compared, so nothing is known of other ranks; add --ranks"
    if decision.rank == reference:
        parts.append(f"no rank below r={reference} is shown to suffice ({margin})")
    else:
        most = _loss(verdicts[chosen].difference)
        parts.append(f"r={decision.rank} loses {_at_most(most, metric)} to r={reference}, 95 % sure, {margin}")
    if chosen == 0:
        parts.append("no smaller rank was tried")
    else:
        parts.append(_next_below(decision, verdicts[chosen - 1], metric))
    if decision.growing:
        parts.append(f"r={reference} was still drawing away when training ended: train longer")
    parts += _doubts(decision)
    return "; ".join(parts)


def _without_rank(decision: Decision, metric: Metric) -> str:
    reference, gain = decision.verdicts[-1].rank, decision.gain
    if gain.low is None or gain.high is None or gain.low == gain.high:
        return (
            "one seed, one example or losses that never vary tell nothing: train with --seeds 3 or more, 5 are better"
        )
    gained = f"r={reference} gains between {_between(gain.low, gain.high, metric)} over the frozen model"
    if decision.status == "no_gain":
        return (
            f"{gained}: this adapter is not shown to learn anything here; "
            "look at data, learning rate and target modules before rank"
        )
    return (
        f"{gained}, and a smaller rank is shown to gain: r={reference} overfits, or its learning rates are unfair to it"
    )


def _next_below(decision: Decision, below: RankVerdict, metric: Metric) -> str:
    """What is known of the largest rank that is not called sufficient."""
    loss = _loss(below.difference)
    assert loss.low is not None
    assert loss.high is not None
    loses = f"loses between {_between(loss.low, loss.high, metric)}"
    if below.verdict == "unresolved":
        told = f"whether r={below.rank} would do cannot be told: it {loses}"
        if decision.margin is not None and loss.low > decision.margin:
            return (
                f"r={below.rank} {loses}, and is called too small only where every smaller rank is, which more seeds "
                "would tell"
            )
        return told if decision.growing else f"{told}; {_would_tell(decision.needed)}"
    if decision.status == "not_plateaued":
        return f"r={below.rank} {loses}: try r={2 * decision.verdicts[-1].rank} as well"
    return f"r={below.rank} {loses}"


def _would_tell(needed: Needed | None) -> str:
    """The sizes that would resolve it, as one types them."""
    if needed is None:
        return "neither more seeds nor more test examples alone would tell"
    if_nothing = _sizes(needed.seeds, needed.examples)
    if_half = _sizes(needed.seeds_if_half_lost, needed.examples_if_half_lost)
    return f"if it loses nothing, {if_nothing} would tell" + (
        f"; if half of the margin, {if_half}" if if_half else "; if half of the margin, neither alone"
    )


def _sizes(seeds: int | None, examples: int | None) -> str:
    sizes = [f"{seeds:,} seeds"] if seeds is not None else []
    return " or ".join(sizes + ([f"{examples:,} test examples"] if examples is not None else []))


def _doubts(decision: Decision) -> list[str]:
    doubts = []
    reference = decision.verdicts[-1].rank
    if decision.better:
        better = ", ".join(f"r={rank}" for rank in decision.better)
        doubts.append(
            f"{better} is better than r={reference}, which overfits, or whose learning rates are unfair to it"
        )
    if decision.keep is not None and decision.keep <= 0:
        doubts.append(f"the margin is more than all that r={reference} gains, so the frozen model would do")
    doubted = [f"r={verdict.rank}" for verdict in decision.verdicts if verdict.contradicted]
    if doubted:
        doubts.append(f"the bootstrap does not confirm the verdict on {', '.join(doubted)}: it is a narrow one")
    return doubts


def _margin(decision: Decision, metric: Metric) -> str:
    assert decision.margin is not None
    share = "" if decision.keep is None else f", {100 * (1 - decision.keep):.2g} % of its gain over rank 0"
    return f"margin {_amount(decision.margin, metric)}{share}"


def _loss(difference: Interval) -> Interval:
    """A difference, which is positive where a rank is better, as a loss."""
    assert difference.low is not None
    assert difference.high is not None
    return Interval(-difference.mean, -difference.high, -difference.low)


def _at_most(loss: Interval, metric: Metric) -> str:
    assert loss.high is not None
    return "nothing" if loss.high <= 0 else f"at most {_amount(loss.high, metric)}"


def _between(low: float, high: float, metric: Metric) -> str:
    return f"{_figure(low, metric)} and {_amount(high, metric)}"


def _amount(value: float, metric: Metric) -> str:
    return f"{_figure(value, metric)} {'nats' if metric == 'nll' else 'points'}"


def _figure(value: float, metric: Metric) -> str:
    """Nats or, for accuracy, points; a true minus sign."""
    shown = f"{value:.4f}" if metric == "nll" else f"{100 * value:.2f}"
    return shown.replace("-", "−")
