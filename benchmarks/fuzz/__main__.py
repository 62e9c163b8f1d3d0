"""Files that somebody may have broken, or made to break things: does the product say in one line what is wrong?

    python -m benchmarks.fuzz --out benchmarks/results/fuzz.json --work /tmp/fuzz --inputs 50000

Valid files of four kinds (data, configurations, adapters, run directories) are changed at random, in their bytes and in
the values that they hold, and read as the commands read them, in a process of its own for each kind. What ends other
than with a result or with the product's own error of one line, or takes more than 10 s of a CPU or 500 MB, is counted,
and kept under `--work`. With `--coverage` the changes that reach new lines of the product are changed further (by
atheris, which is to be installed for that).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.validity.record import write_record

_PARSERS = ("run", "data", "configuration", "adapter")  # the slowest first
_MOST_DEATHS = 20


def fuzz(parser: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One parser, in as many processes as it takes: one that dies is followed by another."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    counts: Counter[str] = Counter()
    deaths: list[dict[str, str]] = []
    ended = False
    while not ended and len(deaths) < _MOST_DEATHS:
        command = [sys.executable, "-m", "benchmarks.fuzz.work", parser, str(work)]
        command += [f"--inputs={options.inputs - counts.total()}", f"--seed={options.seed + len(deaths)}"]
        command += [f"--minutes={options.minutes}", *(["--coverage"] if options.coverage else [])]
        with (work / "log").open("ab") as log:
            ran = subprocess.run(
                command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, check=False
            )
        counts += Counter(json.loads((work / "counts.json").read_text()) if (work / "counts.json").exists() else {})
        ended = ran.returncode == 0
        if not ended:
            name, _, content = (work / "current").read_bytes().partition(b"\n")
            deaths.append({"kind": name.decode(), "what": f"died: {ran.returncode}", "input": content.hex()})
    file = work / "found.jsonl"
    found = [*deaths, *map(json.loads, file.read_text().splitlines() if file.exists() else [])]
    file.write_text("".join(json.dumps(one) + "\n" for one in found))
    return {
        "inputs": counts.total(),
        "read": counts["read"],
        "refused in one line": counts["refused"],
        "tracebacks, hangs, memory": len(found),
        "of them": dict(Counter(one["what"][:120] for one in found).most_common(20)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--work", type=Path, required=True, help="a place for files; what is there is removed")
    parser.add_argument("--inputs", type=int, default=50_000, help="of each parser; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=600, help="and no longer for each; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--parsers", nargs="+", choices=_PARSERS, default=_PARSERS, help="default: all")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each; default: %(default)s")
    parser.add_argument("--coverage", action="store_true", help="be guided by atheris")
    options = parser.parse_args()

    def of(name: str) -> dict[str, Any]:
        return fuzz(name, options.work / name, options)

    with ThreadPoolExecutor(options.workers) as pool:
        findings = dict(zip(options.parsers, pool.map(of, options.parsers), strict=True))
    settings = {
        "inputs": options.inputs,
        "minutes": options.minutes,
        "seed": options.seed,
        "guided by coverage": options.coverage,
    }
    write_record(options.out, "benchmarks.fuzz", settings, findings)


if __name__ == "__main__":
    main()
