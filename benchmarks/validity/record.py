"""What every benchmark here takes from the command line, and what it leaves: one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from scipy.stats import binomtest

_STARTED = time.monotonic()
_PACKAGES = ("rankwise", "torch", "transformers", "peft", "numpy", "scipy")


def parse_arguments(description: str | None, comparisons: int) -> argparse.Namespace:
    """`out`, `work`, `comparisons` and `workers`."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--work", type=Path, required=True, help="where losses are kept; what is there is not redone")
    parser.add_argument("--comparisons", type=int, default=comparisons, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; default: %(default)s")
    return parser.parse_args()


def write_record(out: Path, module: str, settings: Mapping[str, object], findings: Mapping[str, object]) -> None:
    """Write command, versions, hardware, settings and findings; show the findings."""
    record = {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "hardware": hardware(),
        "settings": settings,
        "findings": findings,
        "wall_seconds": round(time.monotonic() - _STARTED),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(findings, indent=2, ensure_ascii=False))


def hardware() -> dict[str, object]:
    """The processor's name, where Linux tells it, its cores, and how busy the machine has been lately."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": platform.machine(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load over 15 minutes, at the end": round(os.getloadavg()[2], 2),
    }


def proportion(count: int, of: int) -> dict[str, object]:
    """A count and the share it is, with exact two-sided 95 % bounds (Clopper & Pearson 1934, Biometrika 26).

    >>> proportion(0, 150)
    {'count': 0, 'of': 150, 'share': 0.0, 'low': 0.0, 'high': 0.0243}
    """
    if of == 0:
        return {"count": 0, "of": 0, "share": None, "low": None, "high": None}
    bounds = binomtest(count, of).proportion_ci()
    rounded = {"share": count / of, "low": bounds.low, "high": bounds.high}
    return {"count": count, "of": of} | {name: round(float(value), 4) for name, value in rounded.items()}
