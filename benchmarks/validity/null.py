"""Is a larger rank ever said to help where there is nothing to learn?

Two kinds of nothing, both compared like any task, with adapters that are really trained:

- *coin*: two labels that are coin flips. Heads are new and trained, rank 0 is fitted as in the product.
- *itself*: labels drawn from the frozen model's own softmax, so that it is the best model of them already.

    python -m benchmarks.validity.null --out benchmarks/results/null.json --work /tmp/null
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.validity.comparisons import Coin, Planted, decided
from benchmarks.validity.jobs import Job, results
from benchmarks.validity.record import parse_arguments, proportion, write_record
from benchmarks.validity.trainings import BATCH_SIZE, RANKS, Design
from rankwise.decide.verdict import Decision

DESIGN = Design(steps=60, rates=(0.01, 0.03), seeds=3)
VALIDATION, TEST = 500, 2000  # examples
_FIRST = 10_000  # numbers, and so seeds, that no plant has


def coins(count: int) -> list[Coin]:
    return [Coin(_FIRST + number, VALIDATION, TEST, DESIGN) for number in range(count)]


def itself(count: int) -> list[Planted]:
    return [Planted(_FIRST + number, 0, VALIDATION, TEST, DESIGN) for number in range(count)]


def claims_rank(decision: Decision) -> bool:
    """Whether it says of any rank that a larger one is better, or recommends another than the smallest."""
    above = decision.status == "resolved" and decision.rank != RANKS[0]
    underfits = any(one.verdict == "underfits" for one in decision.verdicts)
    return above or underfits or decision.status == "not_plateaued"


def summary(decisions: Sequence[Decision]) -> dict[str, object]:
    return {
        "larger_rank_claimed": proportion(sum(map(claims_rank, decisions)), len(decisions)),
        "gain_claimed": proportion(sum(one.rank is not None for one in decisions), len(decisions)),
        "statuses": dict(Counter(one.status for one in decisions)),
    }


def main() -> None:
    arguments = parse_arguments(__doc__, comparisons=150)
    kinds: dict[str, Sequence[Job]] = {"coin": coins(arguments.comparisons), "itself": itself(arguments.comparisons)}
    findings = {}
    seconds = 0.0
    for kind, jobs in kinds.items():
        arrays = results(jobs, arguments.work, arguments.workers)
        seconds += sum(float(stored["seconds"]) for stored in arrays)
        findings[kind] = summary([decided(stored) for stored in arrays])
    settings = {
        "comparisons_of_each_kind": arguments.comparisons,
        "ranks": RANKS,
        "learning_rates": DESIGN.rates,
        "seeds": DESIGN.seeds,
        "steps": DESIGN.steps,
        "batch_size": BATCH_SIZE,
        "validation_examples": VALIDATION,
        "test_examples": TEST,
        "training_seconds": round(seconds),
    }
    write_record(arguments.out, __spec__.name, settings, findings)


if __name__ == "__main__":
    main()
