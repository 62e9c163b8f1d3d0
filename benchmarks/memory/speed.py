"""How long `rankwise estimate` takes as a command, imports included, and how much memory.

python -m benchmarks.memory.speed --out benchmarks/results/estimate_speed.json    # installed without extras
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

COMMANDS = {
    "3B, one rank": ["llama-3.2-3b", "--ranks", "8", "--target-modules", "q_proj,v_proj", "--seq-len", "768"],
    "3B, five ranks": ["llama-3.2-3b", "--target-modules", "q_proj,v_proj", "--seq-len", "768"],
    "3B, five ranks, what fits": ["llama-3.2-3b", "--target-modules", "q_proj,v_proj", "--gpu", "rtx4090"],
    "70B, one rank": ["llama-3.3-70b", "--ranks", "16", "--batch-size", "1", "--seq-len", "2048"],
    "70B, five ranks": ["llama-3.3-70b", "--batch-size", "1", "--seq-len", "2048"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    record = {name: measured(command, arguments.rounds) for name, command in COMMANDS.items()}
    # Where it is installed PEFT imports it, which takes a second.
    about = {"cores": os.cpu_count(), "bitsandbytes": importlib.util.find_spec("bitsandbytes") is not None}
    arguments.out.write_text(json.dumps(about | record, indent=2) + "\n")
    print(arguments.out.read_text())


def measured(arguments: list[str], rounds: int) -> dict[str, object]:
    command = [sys.executable, "-m", "rankwise", "estimate", *arguments, "--json"]
    seconds, peaks = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f"failed: {' '.join(command)}")
        seconds.append(round(time.perf_counter() - started, 2))
        peaks.append(usage.ru_maxrss * 1024)
    return {
        "command": f"rankwise estimate {' '.join(arguments)} --json",
        "seconds, median": median(seconds),
        "seconds, each": seconds,
        "peak memory of the process, bytes": max(peaks),
    }


if __name__ == "__main__":
    main()
