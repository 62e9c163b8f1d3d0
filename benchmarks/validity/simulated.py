"""How often the decision is wrong, and whether its intervals and sizes are what they say: by simulation.

Losses are drawn from crossed models whose truth is known: an effect of each seed, one of each example, a
residual. No training, so there are enough data sets to measure an error rate of 5 % to half a point.

    python -m benchmarks.validity.simulated --out benchmarks/results/simulated.json
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import t

from benchmarks.validity.record import proportion, write_record
from rankwise.decide.interval import crossed_interval
from rankwise.decide.verdict import Decision, Margin, decide
from rankwise.records import Needed

SEEDS = (5, 3, 2)
RANKS = (4, 8, 16, 32)
GAIN = 1.0
MARGIN = Margin(keep=0.95)  # so 0.05
EXAMPLES = 400
_MOST_SCORES = 20_000_000  # of one extended comparison; those that ask for more are counted, not followed


@dataclass(frozen=True)
class Source:
    """The standard errors that seeds, examples and the residual cause where there are 5 seeds and 400 examples."""

    name: str
    of_seeds: float
    of_examples: float
    residual: float

    def seeds(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return self.of_seeds * 5**0.5 * generator.normal(size=count)

    def examples(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return self.of_examples * EXAMPLES**0.5 * generator.normal(size=count)

    def scores(self, generator: np.random.Generator, by_seed: np.ndarray, by_example: np.ndarray) -> np.ndarray:
        """(seeds, examples), of mean 0 over seeds and examples not drawn."""
        noise = self.residual * (5 * EXAMPLES) ** 0.5 * generator.normal(size=(len(by_seed), len(by_example)))
        return by_seed[:, None] + by_example + noise

    def draw(self, generator: np.random.Generator, seeds: int) -> np.ndarray:
        return self.scores(generator, self.seeds(generator, seeds), self.examples(generator, EXAMPLES))


SOURCES = (
    Source("seeds dominate", 1.0, 0.2, 0.2),
    Source("examples dominate", 0.2, 1.0, 0.2),
    Source("equal parts", 0.7, 0.7, 0.2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--coverage", type=int, default=10_000, help="data sets of each model; default: %(default)s")
    parser.add_argument("--decisions", type=int, default=1_000, help="of each kind; default: %(default)s")
    arguments = parser.parse_args()
    findings = {
        "coverage of two-sided 95 % intervals": coverage(arguments.coverage),
        "false claims": false_claims(arguments.decisions),
        "resolved when the needed figure is followed": power(arguments.decisions),
    }
    settings = {
        "sources": [str(source) for source in SOURCES],
        "margin": f"keep {MARGIN.keep} of a gain of {GAIN}",
        "examples": EXAMPLES,
    }
    write_record(arguments.out, "benchmarks.validity.simulated", settings, findings)


def coverage(data_sets: int) -> list[dict[str, object]]:
    """Of the product's interval, and of Student's t over seeds alone and over examples alone, which are common."""
    rows: list[dict[str, object]] = []
    for seeds, source in product(SEEDS, SOURCES):
        generator = np.random.default_rng(0)
        hits: Counter[str] = Counter()
        for _ in range(data_sets):
            scores = source.draw(generator, seeds)
            interval = crossed_interval(scores)
            assert interval.low is not None
            assert interval.high is not None
            hits["crossed"] += interval.low <= 0 <= interval.high
            hits["over seeds alone"] += _covers_zero(scores.mean(axis=1))
            hits["over examples alone"] += _covers_zero(scores.mean(axis=0))
        shares = {name: proportion(hits[name], data_sets) for name in hits}
        rows.append({"seeds": seeds, "source": source.name} | shares)
    return rows


def _covers_zero(values: np.ndarray) -> bool:
    half_width = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return bool(abs(values.mean()) <= half_width)


def comparison(
    generator: np.random.Generator, source: Source, seeds: int, lost: dict[int, float], *, error: float, gain: float
) -> Decision:
    """The decision on losses in which each rank truly loses `lost` to the largest; `error` is the unit of `source`."""
    hardness = generator.gamma(2.0, 0.3, size=EXAMPLES)
    losses = np.stack([hardness + lost.get(rank, 0.0) + error * source.draw(generator, seeds) for rank in RANKS])
    baseline = hardness + gain + 0.5 * generator.normal(size=EXAMPLES)
    return decide(losses, baseline, ranks=RANKS, margin=MARGIN, resamples=2)


def false_claims(comparisons: int) -> list[dict[str, object]]:
    """Where the truth forbids a claim, how often it is made. Errors of the size of the margin, and of a tenth."""
    margin = (1 - MARGIN.keep) * GAIN
    at_margin = dict.fromkeys(RANKS[:-1], margin)
    cases: dict[str, tuple[dict[int, float], float, Callable[[Decision], bool]]] = {
        "no rank gains: a gain is claimed and a rank recommended": (
            {},
            0.0,
            lambda decision: decision.rank is not None,
        ),
        "no rank gains: a larger rank is said to help": (
            {},
            0.0,
            lambda decision: decision.status == "not_plateaued" or _calls(decision, "underfits"),
        ),
        "all ranks are alike: a rank is called too small": ({}, GAIN, lambda decision: _calls(decision, "underfits")),
        "all ranks lose just the margin: a smaller one is called sufficient": (
            at_margin,
            GAIN,
            lambda decision: _calls(decision, "sufficient"),
        ),
        "all ranks lose just the margin: one is called too small": (
            at_margin,
            GAIN,
            lambda decision: _calls(decision, "underfits"),
        ),
    }
    rows: list[dict[str, object]] = []
    for (claim, (lost, gain, made)), seeds, source in product(cases.items(), SEEDS, SOURCES):
        generator = np.random.default_rng(0)
        count = 0
        for number in range(comparisons):
            error = margin * (1.0 if number % 2 else 0.1)
            count += made(comparison(generator, source, seeds, lost, error=error, gain=gain))
        rows.append({"claim": claim, "seeds": seeds, "source": source.name} | proportion(count, comparisons))
    return rows


def _calls(decision: Decision, verdict: str) -> bool:
    """Whether any rank below the reference has this verdict."""
    return any(one.verdict == verdict for one in decision.verdicts[:-1])


def power(comparisons: int) -> list[dict[str, object]]:
    """Of unresolved comparisons, how many are resolved once extended to the seeds or examples they asked for.

    Two ranks. The smaller truly loses nothing, or half of the margin; its needed figure is the one computed for that.
    """
    rows: list[dict[str, object]] = []
    for seeds, more, half in product((5, 3), ("seeds", "examples"), (False, True)):
        # Errors of the pilot near the margin: it does not resolve as a rule, and a few times more data would.
        source = SOURCES[0] if more == "seeds" else Source("examples only", 0.02, 1.0, 0.3)
        outcomes: Counter[str] = Counter()
        asked = []
        for pilot in _unresolved(np.random.default_rng(0), source, seeds, half, comparisons):
            figure = pilot.asked(more)
            if figure is None or figure * (EXAMPLES if more == "seeds" else seeds) > _MOST_SCORES:
                outcomes["asked for what cannot be followed"] += 1
                continue
            asked.append(figure)
            outcomes[pilot.extended(**{more: figure}).verdicts[0].verdict] += 1
        followed = len(asked)
        rows.append(
            {
                "seeds": seeds,
                "more": more,
                "truly lost": "half of the margin" if half else "nothing",
                "needed, median": float(np.median(asked)),
                "sufficient": proportion(outcomes["sufficient"], followed),
                "underfits": proportion(outcomes["underfits"], followed),
                "not followed": outcomes["asked for what cannot be followed"],
            }
        )
    return rows


@dataclass(frozen=True)
class Pilot:
    """An unresolved comparison of two ranks that remembers what it was drawn from."""

    generator: np.random.Generator
    source: Source
    error: float
    lost: float
    contrast: np.ndarray
    by_seed: np.ndarray
    by_example: np.ndarray
    needed: Needed | None

    def asked(self, more: str) -> int | None:
        if self.needed is None:
            return None
        half = "_if_half_lost" if self.lost else ""
        figure: int | None = getattr(self.needed, more + half)
        return figure

    def extended(self, seeds: int = 0, examples: int = 0) -> Decision:
        """The same comparison with more seeds or more examples; what was there stays."""
        new_seeds, new_examples = max(0, seeds - len(self.by_seed)), max(0, examples - len(self.by_example))
        by_seed = np.append(self.by_seed, self.source.seeds(self.generator, new_seeds))
        by_example = np.append(self.by_example, self.source.examples(self.generator, new_examples))
        scores = self.source.scores(self.generator, by_seed, by_example)
        scores[: len(self.by_seed), : len(self.by_example)] = self.contrast
        return _two_ranks(scores, self.error, self.lost)


def _unresolved(generator: np.random.Generator, source: Source, seeds: int, half: bool, count: int) -> Iterator[Pilot]:
    lost = (1 - MARGIN.keep) * GAIN / 2 if half else 0.0
    error = 0.5 * (1 - MARGIN.keep) * GAIN
    found = 0
    while found < count:
        by_seed, by_example = source.seeds(generator, seeds), source.examples(generator, EXAMPLES)
        contrast = source.scores(generator, by_seed, by_example)
        decision = _two_ranks(contrast, error, lost)
        if decision.verdicts[0].verdict == "unresolved":
            found += 1
            yield Pilot(generator, source, error, lost, contrast, by_seed, by_example, decision.needed)


def _two_ranks(contrast: np.ndarray, error: float, lost: float) -> Decision:
    losses = np.stack([lost + error * contrast, np.zeros_like(contrast)])
    # All but without noise: of a gain that does not vary at all nothing is claimed.
    baseline = GAIN + 1e-3 * np.where(np.arange(contrast.shape[1]) % 2, 1, -1)
    return decide(losses, baseline, ranks=(8, 16), margin=MARGIN, resamples=2)


if __name__ == "__main__":
    main()
