"""How long commands take that train nothing, from the shell's point of view.

python -m benchmarks.speed.startup --out benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.validity.record import write_record

COMMANDS = (("--help",), ("estimate", "llama-3.2-3b", "--method", "formula"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--repeats", type=int, default=9, help="default: %(default)s")
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    # In turn, so that what else the machine does falls on all of them.
    for _ in range(options.repeats):
        for command in COMMANDS:
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "rankwise", *command], check=True, stdout=subprocess.DEVNULL)
            times.setdefault(" ".join(("rankwise", *command)), []).append(round(time.perf_counter() - started, 3))
    findings = {
        name: {"seconds, median": median(found), "seconds, each": sorted(found)} for name, found in times.items()
    }
    write_record(options.out, "benchmarks.speed.startup", {"repeats": options.repeats}, findings)


if __name__ == "__main__":
    main()
