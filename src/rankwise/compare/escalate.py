"""Start low, grow if underfitting: which rank to train next, or why to stop. Pure.

Two neighbours, the larger twice the smaller, are told apart as evidence.py says. Growing on the mean alone would follow
noise up the ladder: each doubling is another chance for a lucky seed. Where the larger is better by more than the
margin it is doubled; where not, the ranks below the smaller are tried, largest first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankwise.compare.evidence import Evidence, Scale, Step, weigh
from rankwise.records import StopReason
from rankwise.train.cost import StepCost

_BY_HEART = 0.05  # of the loss of chance: below it, training has nothing left to teach


@dataclass(frozen=True)
class Room:
    """What a further rank must find room in: the adapted layers, memory and time.

    `costs` are those of the ranks so far. A trial may take `free_bytes` beside the base model's `base_bytes`. A rank is
    trained for `steps` in all, over its learning rates and seeds; `seconds_left` is None where there is no budget.
    """

    largest_rank: int
    costs: Sequence[StepCost]
    base_bytes: int
    free_bytes: int
    steps: int
    seconds_left: float | None

    def lacks(self, rank: int) -> tuple[StopReason, str] | None:
        """Why this rank cannot be trained, in a word and in a sentence; None where it can."""
        if rank > self.largest_rank:
            return "rank limit", f"no adapted layer has more than rank {self.largest_rank}"
        peaks = {cost.rank: cost.peak_bytes for cost in self.costs if cost.peak_bytes is not None}
        if peaks and (needed := _extrapolated(peaks, rank) - self.base_bytes) > self.free_bytes:
            return "memory", f"{rank} would take {needed / 1e9:.2g} GB, and {self.free_bytes / 1e9:.2g} GB can be used"
        if self.seconds_left is not None:
            needed = self.steps * _extrapolated({cost.rank: cost.seconds for cost in self.costs}, rank)
            if needed > self.seconds_left:
                left = max(0, round(self.seconds_left))
                return "budget", f"{rank} would take {math.ceil(needed):,} s, and {left:,} s are left"
        return None


def next_step(evidence: Mapping[int, Evidence | None], scale: Scale, room: Room) -> Step:
    """From what the ranks so far show to the next one.

    `evidence` has every rank that was trained, the largest and its half among them; None for a rank without a
    learning rate at which every seed trains.
    """
    largest = max(evidence)
    smaller = largest // 2
    outcome, sentence = weigh(smaller, largest, evidence, scale)
    found = [sentence]
    if outcome == "worse":
        if _by_heart(evidence[largest], scale.chance):
            found.append(f"{largest} knows the training data by heart and gets worse on validation")
            return Step(tuple(found), None, "data")
        return _step_to(2 * largest, found, room)
    rank = smaller
    while outcome == "alike" and rank > 1:
        rank //= 2
        if rank not in evidence:
            return _step_to(rank, found, room)
        outcome, sentence = weigh(rank, largest, evidence, scale, shortly=True)
        found.append(sentence)
    return Step(tuple(found), None, "noise" if outcome == "unclear" else "plateau")


def _step_to(rank: int, found: Sequence[str], room: Room) -> Step:
    lacking = room.lacks(rank)
    if lacking is None:
        return Step(tuple(found), rank, None)
    reason, sentence = lacking
    return Step((*found, sentence), None, reason)


def _by_heart(evidence: Evidence | None, chance: float) -> bool:
    return evidence is not None and evidence.rising and evidence.train_nll < _BY_HEART * chance


def _extrapolated(measured: Mapping[int, float], rank: int) -> float:
    """On the line through the smallest and the largest rank; a smaller rank takes no more than the smallest."""
    low, high = min(measured), max(measured)
    if rank <= low or low == high:
        return measured[low]
    slope = max(0.0, (measured[high] - measured[low]) / (high - low))  # below 0 is the noise of measuring
    return measured[high] + slope * (rank - high)
