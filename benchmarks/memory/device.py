"""Real steps of PEFT's adapters on the device at hand beside their estimates: allocated and reserved peaks on CUDA.

python -m benchmarks.memory.device --out benchmarks/results/memory_device.json

Weights are zeros, so nothing is downloaded; the largest step takes about 12 GB. Without a CUDA device the storages of
a step on the CPU are compared, which are expected to be equal to the byte. With --measured FILE nothing is measured:
the estimates of that file are made anew, on any machine.
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
from rankwise.memory.cuda import workspace_bytes
from rankwise.memory.estimated import EstimatedModel
from rankwise.memory.settings import StepSettings

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


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its estimates over what was measured."""
    for counted in ("", "_reserved"):
        estimate, measured = row[f"estimated{counted}_bytes"], row[f"measured{counted}_bytes"]
        if estimate and measured:
            row[f"{counted[1:] or 'allocated'}, estimate over measured"] = estimate / measured
    return row


def measured_here(model: str, rank: int, settings: StepSettings) -> dict[str, Any]:
    real = calibration(EstimatedModel(model, "all-linear", "simulate"), rank, settings)
    gc.collect()
    return {"model": model} | asdict(real) | {"settings": asdict(settings)}


def estimated_anew(row: dict[str, Any]) -> dict[str, Any]:
    subject = EstimatedModel(row["model"], "all-linear", "simulate")
    subject.workspace_bytes = row["workspace_bytes"]
    estimate = subject.memory(row["rank"], StepSettings(**row["settings"]))
    estimates = {"estimated_bytes": estimate.peak_bytes, "estimated_reserved_bytes": estimate.reserved_bytes}
    return {key: value for key, value in row.items() if "factor" not in key and "over" not in key} | estimates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, help="only so many set-ups")
    parser.add_argument("--measured", type=Path, help="an earlier --out")
    arguments = parser.parse_args()
    versions = {"torch": torch.__version__}
    if arguments.measured is None:
        taken = (
            measured_here(*one) | {"workspace_bytes": workspace_bytes(torch.device("cuda"))}
            if torch.cuda.is_available()
            else measured_here(*one)
            for one in list(set_ups())[: arguments.first]
        )
    else:
        document = json.loads(arguments.measured.read_text())
        versions = {"torch": document["torch"], "torch of the estimates": torch.__version__}
        taken = (estimated_anew(row) for row in document["set-ups"][: arguments.first])
    rows = []
    for row in map(compared, taken):
        rows.append(row)
        print(row["model"], row["rank"], {key: value for key, value in row.items() if "over" in key}, flush=True)
        arguments.out.write_text(json.dumps(versions | {"set-ups": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
