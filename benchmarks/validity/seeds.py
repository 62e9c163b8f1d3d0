"""How often the decision is wrong where seeds are not what its limits take them for: by simulation.

Trainings that collapse now and then, to rank 0's loss, which few seeds may not show; and learning rates that are chosen
with the seeds which are then tested. Of both the truth is known. Nobody's limits over three seeds tell the first.

    python -m benchmarks.validity.seeds --out benchmarks/results/seeds.json
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.validity.record import proportion, write_record
from rankwise.decide.verdict import Margin, decide

SEEDS = (3, 5)
EXAMPLES = 400
GAIN = 1.0
COLLAPSING = (0.1, 0.2, 0.3)  # of a rank's trainings, so that it loses as much of the gain
RATES = (1, 2, 4)
_NOISE = 0.05  # of a seed and example, in gains
_OF_SEEDS = 0.05  # the effect of a seed on a training, another at each learning rate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--data-sets", type=int, default=1_000, help="of each kind; default: %(default)s")
    arguments = parser.parse_args()
    findings = {
        "a rank of which some trainings collapse is called sufficient": [
            {"collapsing": share, "seeds": seeds}
            | proportion(missed(share, seeds, arguments.data_sets), arguments.data_sets)
            for share, seeds in product(COLLAPSING, SEEDS)
        ],
        "no rank gains: a gain is claimed at the best of some learning rates": [
            {"rates": rates, "seeds": seeds} | proportion(lucky(rates, seeds, arguments.data_sets), arguments.data_sets)
            for rates, seeds in product(RATES, SEEDS)
        ],
    }
    settings = {"examples": EXAMPLES, "margin": "keep 0.95", "noise": _NOISE, "of seeds": _OF_SEEDS}
    write_record(arguments.out, "benchmarks.validity.seeds", settings, findings)


def missed(share: float, seeds: int, data_sets: int) -> int:
    generator = np.random.default_rng(0)
    count = 0
    for _ in range(data_sets):
        losses = _NOISE * generator.normal(size=(2, seeds, EXAMPLES))
        losses[0] += GAIN * (generator.random((seeds, 1)) < share)
        baseline = GAIN + _NOISE * generator.normal(size=EXAMPLES)
        count += decide(losses, baseline, ranks=(8, 16), margin=Margin(0.95), resamples=2).rank == 8
    return count


def lucky(rates: int, seeds: int, data_sets: int) -> int:
    """Validation knows the seeds' effects exactly: the rate with the least mean over seeds is tested."""
    generator = np.random.default_rng(0)
    count = 0
    for _ in range(data_sets):
        effects = _OF_SEEDS * generator.normal(size=(2, rates, seeds))
        best = effects.mean(axis=2).argmin(axis=1)
        tested = np.take_along_axis(effects, best[:, None, None], axis=1)[:, 0]
        losses = tested[:, :, None] + _NOISE * generator.normal(size=(2, seeds, EXAMPLES))
        baseline = _NOISE * generator.normal(size=EXAMPLES)
        count += decide(losses, baseline, ranks=(8, 16), margin=Margin(0.95), resamples=2).rank is not None
    return count


if __name__ == "__main__":
    main()
