"""Real steps of PEFT's adapters on the device at hand beside their estimates: allocated and reserved peaks on CUDA.

python -m benchmarks.memory.device --out benchmarks/results/memory_device.json

Weights are zeros, so nothing is downloaded; the largest step takes about 12 GB. Without a CUDA device the storages of
a step on the CPU are compared, which are expected to be equal to the byte.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from rankwise.memory.calibrate import calibration
from rankwise.memory.settings import StepSettings
from rankwise.memory.subject import Subject

MODELS = ("qwen3-0.6b", "llama-3.2-1b")
STEP = StepSettings(batch_size=4, seq_len=512)


def set_ups() -> Iterator[tuple[str, int, StepSettings]]:
    """Two architectures, each with ranks and batches, and from the first of them checkpointing, NF4 and others."""
    for model, rank, batch_size in product(MODELS, (8, 64), (1, 4)):
        yield model, rank, replace(STEP, batch_size=batch_size)
    changes: tuple[dict[str, Any], ...] = (
        {"checkpointing": True},
        {"quantize": "nf4"},
        {"quantize": "nf4-double", "checkpointing": True},
        {"padding": False},
        {"loss": "chunked"},
        {"optimizer": "adamw-foreach"},
    )
    for model, changed in product(MODELS, changes):
        yield model, 16, replace(STEP, **changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, help="only so many set-ups")
    arguments = parser.parse_args()
    rows = []
    for model, rank, settings in list(set_ups())[: arguments.first]:
        real = calibration(Subject(model, "all-linear", "simulate"), rank, settings)
        gc.collect()
        reserved = real.measured_reserved_bytes
        row = {"model": model} | asdict(real) | {"settings": asdict(settings)}
        row["allocated, estimate over measured"] = real.estimated_bytes / real.measured_bytes
        if reserved and real.estimated_reserved_bytes:
            row["reserved, estimate over measured"] = real.estimated_reserved_bytes / reserved
        rows.append(row)
        print(model, rank, {key: value for key, value in row.items() if "over" in key}, flush=True)
        arguments.out.write_text(json.dumps({"torch": torch.__version__, "set-ups": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
