"""Does the spectrum of a trained adapter show the rank that its task needs?

Tasks are those of benchmarks/validity/plants.py: a teacher whose two taught layers have updates of exact rank r*, with
equal singular values. An adapter of rank 32 is trained on each, written, and inspected as a user does it. For each
taught module the largest ratio of neighbouring singular values is noted, the rank it comes after, and the ranks that
energy and entropy tell; the same after few steps and after many.

    python -m benchmarks.planted_spectrum --out benchmarks/results/planted_spectrum.json
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.validity.planted import PLANTED_RANKS
from benchmarks.validity.plants import Sizes, frozen_transformer, headless, planted_task, targets_of
from benchmarks.validity.record import proportion, write_record
from benchmarks.validity.trainings import BATCH_SIZE
from rankwise.lora.peft_io import write_adapter
from rankwise.records import AdapterSpectrum, ModuleSpectrum, Trial
from rankwise.spectrum.adapter import largest_drop, rank_for
from rankwise.spectrum.inspect import inspect_adapter
from rankwise.train.loop import run_pack
from rankwise.train.settings import TrainingSettings

RANK = 32
RATE = 0.01
BUDGETS = (300, 1000, 3000)  # steps
PLANTS = 3
FACTORS = (2.0, 3.0, 5.0)
_EVALUATED = 64  # examples: validation tells nothing here


def trained_spectrum(
    planted: int, seed: int, steps: int, *, batch_size: int = BATCH_SIZE, rate: float = RATE
) -> AdapterSpectrum:
    """Of an adapter of rank 32, trained on a plant of that rank; no example is seen twice."""
    settings = TrainingSettings(steps=steps, batch_size=batch_size, evaluations=1)
    # Its directory is gone, and an adapter names the model that it adapts.
    base = dataclasses.replace(headless(frozen_transformer(seed)), name="owner/planted")
    task = planted_task(base, planted, Sizes(steps * batch_size, _EVALUATED, _EVALUATED), seed)
    targets = targets_of(base)
    (adapter,) = run_pack(base, task, [Trial(RANK, float(RANK), False, rate, seed)], targets, settings)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place, "adapter")
        write_adapter(directory, base, adapter.result.trial, adapter.state, targets)
        return inspect_adapter(directory)


def told(module: ModuleSpectrum) -> dict[str, object]:
    """What a module's spectrum says of a rank."""
    after, factor = largest_drop(torch.tensor(module.singular_values, dtype=torch.float64))
    return {
        "module": module.name,
        "drop_after": after,
        "drop_factor": round(factor, 3),
        "rank_90": rank_for(module.energy, 0.90),
        "rank_95": rank_for(module.energy, 0.95),
        "rank_99": rank_for(module.energy, 0.99),
        "stable_rank": round(module.stable_rank, 2),
        "entropy_rank": round(module.entropy_rank, 2),
        "singular_values": [float(f"{value:.4g}") for value in module.singular_values],
    }


def summary(planted: int, found: Sequence[dict[str, object]]) -> dict[str, object]:
    """How often each criterion names the planted rank; of drops, those of at least a factor, and how often right."""
    exact = {name: proportion(sum(one[name] == planted for one in found), len(found)) for name in _CRITERIA}
    drops: dict[str, object] = {}
    for factor in FACTORS:
        large = [one for one in found if float(str(one["drop_factor"])) >= factor]
        drops[f"at least {factor:g}"] = proportion(sum(one["drop_after"] == planted for one in large), len(large))
    return {"exact": exact, "exact_of_drops": drops}


_CRITERIA = ("drop_after", "rank_90", "rank_95", "rank_99")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    findings: dict[str, object] = {}
    for steps in BUDGETS:
        by_rank: dict[str, object] = {}
        for planted in PLANTED_RANKS:
            spectra = [trained_spectrum(planted, 1000 * planted + number, steps) for number in range(PLANTS)]
            found = [told(module) for spectrum in spectra for module in spectrum.modules]
            by_rank[str(planted)] = {"summary": summary(planted, found), "modules": found}
        findings[f"{steps} steps"] = by_rank
    settings = {
        "planted_ranks": PLANTED_RANKS,
        "plants": PLANTS,
        "rank": RANK,
        "learning_rate": RATE,
        "batch_size": BATCH_SIZE,
        "budgets": BUDGETS,
    }
    write_record(arguments.out, __spec__.name, settings, findings)


if __name__ == "__main__":
    main()
