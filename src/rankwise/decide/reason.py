"""A decision in sentences that a person can repeat."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.decide.verdict import Decision, RankVerdict
from rankwise.records import Interval, Metric, Needed


def reason(
    decision: Decision, metric: Metric, *, one_seed: bool = False, grouped: bool = False, largest: bool = False
) -> str:
    """Why this is the answer: what was shown, how sure, and what would tell where the data cannot.

    `one_seed` where no rank was trained with more, `grouped` where examples are of groups, `largest` where no rank
    above the reference can be trained.
    """
    verdicts = decision.verdicts
    reference = verdicts[-1].rank
    if decision.rank is None:
        return _without_rank(decision, metric, one_seed=one_seed)
    chosen = next(index for index, verdict in enumerate(verdicts) if verdict.rank == decision.rank)
    margin = _margin(decision, metric)
    parts = []
    if len(verdicts) == 1:
        return f"only r={reference} was compared, so nothing is known of other ranks; add --ranks"
    if decision.rank == reference:
        parts.append(f"no rank below r={reference} is shown to suffice ({margin})")
    else:
        most = _at_most(_loss(verdicts[chosen].difference), metric)
        parts.append(f"r={decision.rank} loses {most} to r={reference}, {_sure(decision, verdicts[chosen])}, {margin}")
    below = verdicts[chosen - 1].rank if chosen else 0
    if gap := [rank for rank in decision.missing if below < rank < decision.rank]:
        parts.append(
            f"whether {_ranks(gap)} would do is not known, since no loss there is finite: lower learning rates"
        )
    elif chosen == 0 and decision.rank > 1:
        parts.append("no smaller rank was tried")
    if chosen:
        parts.append(_next_below(decision, chosen, metric, grouped=grouped, largest=largest))
    if decision.growing:
        parts.append(f"r={reference} was still drawing away when training ended: train longer")
    parts += _doubts(decision)
    return "; ".join(parts)


def _without_rank(decision: Decision, metric: Metric, *, one_seed: bool) -> str:
    reference, gain = decision.verdicts[-1].rank, decision.gain
    if gain.low is None or gain.high is None:
        if one_seed:
            return "one seed tells nothing: train with --seeds 3 or more, 5 are better"
        return "one test example, or one group that is nearly all of them, tells nothing: test on more"
    if gain.low == gain.high:
        gains = "is no better than"
        if gain.mean:
            gains = (
                f"gains {_amount(gain.mean, metric)} over"
                if gain.mean > 0
                else f"loses {_amount(-gain.mean, metric)} to"
            )
        ways = ["test on other examples"]
        ways += ["with --metric nll"] if metric == "accuracy" else []
        ways += [] if gain.mean > 0 else [f"train with {'lower' if gain.mean else 'higher'} learning rates"]
        return (
            f"r={reference} {gains} the frozen model on every test example with every seed alike, "
            f"and what never varies tells nothing: {' or '.join(ways)}"
        )
    gained = f"r={reference} gains between {_between(gain.low, gain.high, metric)} over the frozen model"
    if decision.status == "no_gain":
        said = (
            f"{gained}: this adapter is not shown to learn anything here; "
            "look at data, learning rate and target modules before rank"
        )
        seen = (
            f"; were {_amount(gain.mean, metric)}, which was seen, its gain, more test examples or seeds would show it"
        )
        return said + (seen if gain.mean > 0 else "")
    unfair = f"r={reference} overfits, or its learning rates are unfair to it"
    if not decision.better:
        unfair = "more seeds or test examples would tell, or lower learning rates if a seed ended no better than rank 0"
    return f"{gained}, and a smaller rank is shown to gain: {unfair}"


def _sure(decision: Decision, verdict: RankVerdict) -> str:
    """How sure: where the margin is a share, of what is kept, since the gain that it is a share of is uncertain too."""
    loss = _loss(verdict.difference)
    assert loss.high is not None
    assert decision.margin is not None
    if loss.high < decision.margin or decision.keep is None:
        return "95 % sure"
    return f"and, 95 % sure, keeps {100 * decision.keep:.3g} % of its gain over rank 0 whatever that is"


def _next_below(decision: Decision, chosen: int, metric: Metric, *, grouped: bool, largest: bool) -> str:
    """What is known of the rank below the one that is recommended."""
    below, reference = decision.verdicts[chosen - 1], decision.verdicts[-1].rank
    loss = _loss(below.difference)
    assert loss.low is not None
    assert loss.high is not None
    loses = f"loses between {_between(loss.low, loss.high, metric)}"
    if below.verdict == "sufficient":
        better = [rank for rank in decision.better if rank > below.rank]
        return f"r={below.rank} would do beside r={reference}, but is not shown to beside {_ranks(better)}"
    if below.verdict == "unresolved":
        told = f"whether r={below.rank} would do cannot be told: it {loses}"
        if below.beyond.low is not None and below.beyond.low > 0:
            return f"r={below.rank} {loses}, more than the margin; {_not_called_too_small(decision)}"
        if loss.low == loss.high:
            differently = "on which they differ" + (", or --metric nll," if metric == "accuracy" else "")
            return (
                f"r={below.rank} and r={reference} answer every test example alike: examples {differently} would tell"
            )
        return told if decision.growing else f"{told}; {_would_tell(decision.needed, grouped=grouped)}"
    if decision.status == "not_plateaued" and not any(below.rank < rank < reference for rank in decision.missing):
        return f"r={below.rank} {loses}{_even_so(decision, below)}: {_larger(decision, below.rank, largest=largest)}"
    return f"r={below.rank} {loses}{_even_so(decision, below)}"


def _even_so(decision: Decision, verdict: RankVerdict) -> str:
    """Why a rank underfits that may lose less than the margin: this is a share of a gain that varies with the loss."""
    least = _loss(verdict.difference).low
    assert least is not None
    if decision.keep is None or decision.margin is None or least > decision.margin:
        return ""
    return f" and, 95 % sure, keeps less than {100 * decision.keep:.3g} % of the gain over rank 0 whatever that is"


def _not_called_too_small(decision: Decision) -> str:
    """Why a rank that loses more than the margin is not: for the smallest rank that is not."""
    smaller = next(verdict for verdict in decision.verdicts if verdict.verdict != "underfits")
    if smaller.beyond.high is not None and smaller.beyond.high < 0:
        return f"r={smaller.rank} does not, so its learning rates may be unfair to it"
    return f"it is called too small only where every smaller rank is, and of r={smaller.rank} more seeds would tell"


def _larger(decision: Decision, below: int, *, largest: bool) -> str:
    """What to train next where the reference is the smallest rank that suffices."""
    reference = decision.verdicts[-1].rank
    if above := [rank for rank in decision.missing if rank > reference]:
        return f"{_ranks(above)} may gain more, but no loss there is finite: lower learning rates"
    between = [f"try r={reference // 2}, between them"] if reference > 2 * below else []
    larger = "no larger rank can be trained" if largest else f"try r={2 * reference} as well"
    return ", and ".join([*between, larger])


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(f"r={rank}" for rank in ranks)


def _would_tell(needed: Needed | None, *, grouped: bool) -> str:
    """The sizes that would resolve it, as one types them."""
    if needed is None:
        return "neither more seeds nor more test examples alone would tell"
    if_nothing = _sizes(needed.seeds, needed.examples, grouped=grouped)
    if_half = _sizes(needed.seeds_if_half_lost, needed.examples_if_half_lost, grouped=grouped)
    return f"if it loses nothing, {if_nothing} would tell" + (
        f"; if half of the margin, {if_half}" if if_half else "; if half of the margin, neither alone"
    )


def _sizes(seeds: int | None, examples: int | None, *, grouped: bool) -> str:
    sizes = [f"{seeds:,} seeds"] if seeds is not None else []
    of_groups = " of as many groups more" if grouped else ""
    return " or ".join(sizes + ([f"{examples:,} test examples{of_groups}"] if examples is not None else []))


def _doubts(decision: Decision) -> list[str]:
    doubts = []
    reference = decision.verdicts[-1].rank
    if decision.better:
        doubts.append(
            f"{_ranks(decision.better)} is better than r={reference}, "
            "which overfits, or whose learning rates are unfair to it"
        )
    if decision.keep is not None and decision.keep <= 0:
        doubts.append(f"the margin is more than all that r={reference} gains, so the frozen model would do")
    doubted = [f"r={verdict.rank}" for verdict in decision.verdicts if verdict.contradicted]
    if doubted:
        doubts.append(f"the bootstrap does not confirm the verdict on {', '.join(doubted)}: it is a narrow one")
    return doubts


def _margin(decision: Decision, metric: Metric) -> str:
    assert decision.margin is not None
    share = "" if decision.keep is None else f", {_percent(1 - decision.keep)} % of its gain over rank 0"
    return f"margin {_amount(decision.margin, metric)}{share}"


def _percent(share: float) -> str:
    """In two digits, or as many as there are before the point."""
    return f"{100 * share:.2g}" if share < 0.995 else f"{100 * share:,.0f}"


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
