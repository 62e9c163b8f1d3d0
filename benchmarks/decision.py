"""What a large decision takes: 8 ranks, 5 seeds, 20,000 test examples, 10,000 resamples of the cross-check.

OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.decision --out benchmarks/results/decision.json
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.validity.record import write_record
from rankwise.decide.verdict import decide

RANKS, SEEDS, EXAMPLES, RESAMPLES = (1, 2, 4, 8, 16, 32, 64, 128), 5, 20_000, 10_000
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    out = parser.parse_args().out
    generator = np.random.default_rng(0)
    hardness = generator.gamma(2.0, 0.3, size=EXAMPLES)
    lost = np.array([0.2, 0.1, 0.05, 0.02, 0.0, 0.0, 0.0, 0.0])[:, None, None]
    losses = hardness / 2 + lost + 0.2 * generator.normal(size=(len(RANKS), SEEDS, EXAMPLES))
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        decide(losses, hardness, ranks=RANKS, resamples=RESAMPLES)
        seconds.append(time.perf_counter() - started)
    findings = {
        "seconds, median": round(median(seconds), 2),
        "seconds, each": [round(one, 2) for one in seconds],
        "peak memory of the process, bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    settings = {"ranks": RANKS, "seeds": SEEDS, "examples": EXAMPLES, "resamples": RESAMPLES}
    write_record(out, "benchmarks.decision", settings, findings)


if __name__ == "__main__":
    main()
