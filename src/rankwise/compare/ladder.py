"""Train the largest rank, cut it to the smaller ones, train those around the knee: which next, or why to stop. Pure.

A cut adapter is a hint: training at its rank mostly does better than cutting to it. So the ranks that the answer is
about are trained, from the one below the knee on: down while ranks suffice, up while they do not. They are told apart
as evidence.py says.

A rank to which the cut loses no more than the margin follows the largest: it is trained at that one's learning rate
alone. If it suffices so, nobody needs its others; if that cannot be shown, they are trained too. Where a rank could not
be told apart, those after it do not follow: their others would mostly be wanted.

Where validation cannot tell a rank from the largest, larger ones are mostly no clearer. So if its cut and its own mean
both lose no more than the margin, the test split is asked, once and at a stricter confidence: if it shows that the rank
suffices, no larger one needs to be trained. A second look would err on top of the answer; this one does so rarely.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import takewhile

from rankwise.compare.evidence import Evidence, Outcome, Scale, Step, weigh

LOOK_CONFIDENCE = 0.99  # of the limit by which test shows it


def next_step(
    ranks: Sequence[int],
    cut: Mapping[int, float],
    evidence: Mapping[int, Evidence | None],
    scale: Scale,
    *,
    alone: Collection[int],
    may_follow: bool,
    shown_by_test: Callable[[int], bool] | None,
) -> Step:
    """From the largest rank, cut to the smaller ones, and the ranks trained so far to the next one.

    `ranks` ascend, the largest and at least one more. `cut` are the mean losses on validation of the largest rank's
    trials, cut to each smaller rank; `evidence` has the largest rank and those trained since, None for a rank without a
    learning rate at which every seed trains. Those in `alone` were trained at the largest one's learning rate alone,
    as others may be if they `may_follow`. `shown_by_test` tells of a rank whether test shows that it suffices; None
    where it was asked on the way to these ranks.
    """
    *smaller, largest = ranks
    best = evidence[largest]
    if best is None:
        return Step((f"{largest} has no learning rate at which every seed trains",), None, "noise")
    losses = {rank: cut[rank] - best.loss for rank in smaller}
    delta = scale.delta(best)
    found = [_cut_text(largest, losses, best, scale)]
    outcomes: dict[int, Outcome] = {}
    for rank in sorted(evidence.keys() & smaller):
        outcomes[rank], sentence = weigh(rank, largest, evidence, scale)
        found.append(f"at {largest}'s learning rate: {sentence}" if rank in alone else sentence)
    promising = [
        rank
        for rank, mine in evidence.items()
        if mine is not None and outcomes.get(rank) == "unclear" and max(losses[rank], mine.loss - best.loss) <= delta
    ]
    looked = False
    if promising and shown_by_test is not None:
        rank, looked = min(promising), True
        if shown_by_test(rank):
            found.append(f"but test shows that {rank} suffices")
            return Step(tuple(found), None, "plateau", looked)
        found.append(f"nor does test show that {rank} suffices")
    not_shown = next((rank for rank in alone if outcomes[rank] != "alike"), None)
    if not_shown is not None:
        return Step((*found, f"so {not_shown}'s other learning rates are tried"), not_shown, None, looked)
    lowest = min((rank for rank, outcome in outcomes.items() if outcome == "alike"), default=largest)
    below = [rank for rank in smaller if rank < lowest]
    failed = [rank for rank in below if rank in outcomes]
    left = [rank for rank in below if rank > max(failed, default=0)]
    if left:
        start = max((rank for rank in smaller if rank < knee(ranks, losses, delta)), default=smaller[0])
        rank = left[0] if failed else min(left[-1], start)
        hopeful = losses[rank] <= delta and "unclear" not in outcomes.values()
        return Step(tuple(found), rank, None, looked, follows=may_follow and hopeful)
    if failed and outcomes[failed[-1]] == "unclear":
        return Step(tuple(found), None, "noise", looked)
    return Step(tuple(found), None, "no plateau" if lowest == largest else "plateau", looked)


def knee(ranks: Sequence[int], losses: Mapping[int, float], delta: float) -> int:
    """The smallest of ascending ranks down to which no cut loses more than `delta` to the largest.

    >>> knee((2, 4, 8), {2: 0.03, 4: 0.01}, 0.02), knee((2, 4, 8), {2: 0.01, 4: 0.03}, 0.02)
    (4, 8)
    """
    *smaller, largest = ranks
    suffice = [largest, *takewhile(lambda rank: losses[rank] <= delta, reversed(smaller))]
    return suffice[-1]


def _cut_text(largest: int, losses: Mapping[int, float], best: Evidence, scale: Scale) -> str:
    """
    >>> from rankwise.decide.verdict import Margin
    >>> from rankwise.records import Baseline
    >>> scale = Scale("nll", Margin(0.95, 0.01), Baseline(accuracy=0.5, nll=0.7), chance=0.7)
    >>> _cut_text(8, {2: 0.02, 4: 0.001}, Evidence((0.1, 0.2), 0.15, 0.1, False), scale)
    '8 cut to 4 loses 0.001 nats, to 2 0.02 (margin 0.01)'
    """
    first, *others = sorted(losses, reverse=True)
    more = "".join(f", to {rank} {scale.figure(losses[rank])}" for rank in others)
    margin = scale.figure(scale.delta(best))
    return f"{largest} cut to {first} loses {scale.figure(losses[first])} {scale.unit}{more} (margin {margin})"
