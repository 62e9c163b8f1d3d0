"""How often the decision is wrong where a few examples carry what a rank loses: by simulation.

A rank truly loses just the margin, all of it on rare examples, or gains all but that on them. Calling it sufficient, or
too small, may err in 5 % of data sets; beside it stands what Student's t for crossed seeds and examples would say.

    python -m benchmarks.validity.rare --out benchmarks/results/rare.json
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.validity.record import proportion, write_record
from rankwise.decide.interval import crossed_mean
from rankwise.decide.verdict import CONFIDENCE, Margin, decide

SEEDS = 3
EXAMPLES = (50, 100, 200, 500, 2000)
MARGIN = 0.05
_NOISE = 0.5 * MARGIN  # of each seed and example

Draw = Callable[[np.random.Generator, int], np.ndarray]


def failing(share: float) -> Draw:
    """Examples of which so many fail, all alike; their mean is 1."""
    return lambda generator, examples: (generator.random(examples) < share) / share


# Losses above 0 whose mean is 1.
KINDS: dict[str, Draw] = {
    "1 in 100 fails": failing(0.01),
    "3 in 100 fail": failing(0.03),
    "lognormal losses": lambda generator, examples: generator.lognormal(-0.5, 1.0, size=examples),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--data-sets", type=int, default=1_000, help="of each kind and size; default: %(default)s")
    arguments = parser.parse_args()
    findings = {"false claims": false_claims(arguments.data_sets)}
    settings = {"seeds": SEEDS, "margin": MARGIN, "noise of a seed and example": _NOISE}
    write_record(arguments.out, "benchmarks.validity.rare", settings, findings)


def false_claims(data_sets: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for (kind, draw), lost, examples in product(KINDS.items(), (True, False), EXAMPLES):
        generator = np.random.default_rng(0)
        claimed: Counter[str] = Counter()
        for _ in range(data_sets):
            rare = draw(generator, examples)
            noise = _NOISE * generator.normal(size=(SEEDS, examples))
            losses = MARGIN * (rare if lost else 2 - rare) + noise
            claimed["here"] += claims(losses, "sufficient" if lost else "underfits")
            claimed["by Student's t"] += claims_by_t(losses, below=lost)
        shares = {who: proportion(claimed[who], data_sets) for who in ("here", "by Student's t")}
        claim = "called sufficient" if lost else "called too small"
        rows.append({"losses": kind if lost else f"mirrored: {kind}", "claim": claim, "examples": examples} | shares)
    return rows


def claims(losses: np.ndarray, verdict: str) -> bool:
    """Whether a rank with these losses has this verdict, beside one without any."""
    baseline = 1 + 0.1 * np.where(np.arange(losses.shape[1]) % 2, 1, -1)
    both = np.stack([losses, np.zeros_like(losses)])
    decision = decide(both, baseline, ranks=(8, 16), margin=Margin(absolute=MARGIN), resamples=2)
    return decision.verdicts[0].verdict == verdict


def claims_by_t(losses: np.ndarray, *, below: bool) -> bool:
    limits = replace(crossed_mean(losses - MARGIN), skewness=0.0).interval(2 * CONFIDENCE - 1)
    assert limits.low is not None
    assert limits.high is not None
    return limits.high < 0 if below else limits.low > 0


if __name__ == "__main__":
    main()
