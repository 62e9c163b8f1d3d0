"""Does a comparison name the rank that was planted?

Each plant is a task that adapters of rank r* can learn and smaller ones cannot (plants.py says how), compared
over ranks 1 to 32 with a margin of 5 % of the gain. The same plants are trained for few steps and for many:
within few, a rank above r* may truly be better, because it gets there faster. That is why a recommendation
holds for the steps trained, and the two budgets are counted apart.

    python -m benchmarks.validity.planted --out benchmarks/results/planted.json --work /tmp/planted
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.validity.comparisons import MARGIN, Planted, decided
from benchmarks.validity.jobs import Arrays, results
from benchmarks.validity.record import parse_arguments, proportion, write_record
from benchmarks.validity.trainings import BATCH_SIZE, RANKS, Design
from rankwise.decide.verdict import Decision

PLANTED_RANKS = (2, 4, 8, 16)
BUDGETS = (100, 300)  # steps
RATES = (0.01, 0.03)
SEEDS = 3
VALIDATION, TEST = 500, 2000  # examples


@dataclass(frozen=True)
class Outcome:
    """One plant at one budget, decided."""

    plant: Planted
    decision: Decision
    kept: tuple[float, ...]  # of the largest rank's gain, by each rank
    rates: tuple[float, ...]

    @property
    def word(self) -> str:
        """The status, or where it is *resolved* how the recommendation compares with the planted rank."""
        rank, planted = self.decision.rank, self.plant.rank
        if self.decision.status != "resolved" or rank is None:
            return self.decision.status
        if rank < planted:
            return "below"
        return {planted: "exact", 2 * planted: "double"}.get(rank, "above double")

    @property
    def too_small(self) -> bool:
        """Whether any rank below the planted one was called sufficient, be the status what it may."""
        return any(one.verdict == "sufficient" and one.rank < self.plant.rank for one in self.decision.verdicts)


def plants(count: int, budgets: Sequence[int] = BUDGETS) -> list[Planted]:
    """The planted ranks in turn, each plant at every budget."""
    return [
        Planted(
            number=number,
            rank=PLANTED_RANKS[number % len(PLANTED_RANKS)],
            validation=VALIDATION,
            test=TEST,
            design=Design(steps=steps, rates=RATES, seeds=SEEDS),
        )
        for number in range(count)
        for steps in budgets
    ]


def outcome(plant: Planted, arrays: Arrays) -> Outcome:
    """Decide, and measure what each rank kept."""
    losses, baseline = arrays["losses"], arrays["baseline"]
    gains = baseline.mean(dtype=float) - losses.mean(axis=(1, 2), dtype=float)
    return Outcome(plant, decided(arrays), tuple((gains / gains[-1]).tolist()), tuple(arrays["rates"].tolist()))


def summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Counts with exact bounds, and what the ranks kept and were trained with on average."""
    words = Counter(one.word for one in outcomes)
    resolved = sum(one.decision.status == "resolved" for one in outcomes)
    return {
        "too_small_called_sufficient": proportion(sum(one.too_small for one in outcomes), len(outcomes)),
        "exact_or_double_of_resolved": proportion(words["exact"] + words["double"], resolved),
        "smallest_shown_sufficient": dict(sorted(Counter(one.decision.rank or 0 for one in outcomes).items())),
        "outcomes": {word: proportion(count, len(outcomes)) for word, count in words.most_common()},
        "mean_share_of_gain_kept": dict(zip(map(str, RANKS), _means([one.kept for one in outcomes]), strict=True)),
        "plants_with_highest_rate_chosen": {
            str(rank): sum(one.rates[index] == max(RATES) for one in outcomes) for index, rank in enumerate(RANKS)
        },
    }


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [round(fmean(column), 4) for column in zip(*rows, strict=True)]


def main() -> None:
    arguments = parse_arguments(__doc__, comparisons=152)
    jobs = plants(arguments.comparisons)
    arrays = results(jobs, arguments.work, arguments.workers)
    outcomes = [outcome(job, stored) for job, stored in zip(jobs, arrays, strict=True)]
    findings = {}
    for steps in BUDGETS:
        ones = [one for one in outcomes if one.plant.design.steps == steps]
        by_rank = {str(rank): summary([one for one in ones if one.plant.rank == rank]) for rank in PLANTED_RANKS}
        findings[f"{steps} steps"] = {"all plants": summary(ones), "by planted rank": by_rank}
    settings = {
        "plants": arguments.comparisons,
        "planted_ranks": PLANTED_RANKS,
        "ranks": RANKS,
        "learning_rates": RATES,
        "seeds": SEEDS,
        "batch_size": BATCH_SIZE,
        "validation_examples": VALIDATION,
        "test_examples": TEST,
        "keep": MARGIN.keep,
        "training_seconds": round(sum(float(stored["seconds"]) for stored in arrays)),
    }
    write_record(arguments.out, __spec__.name, settings, findings)


if __name__ == "__main__":
    main()
