"""Which LoRA rank? Answered by measurement.

The public names are loaded when they are first used, so that `rankwise --help` and the statistics do
not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from rankwise.compare.config import ComparisonConfig
    from rankwise.compare.preview import plan_rank_comparison
    from rankwise.compare.run import run_rank_comparison
    from rankwise.errors import RunError, UserError
    from rankwise.export.write import Export, export_recommendation
    from rankwise.memory.estimate import estimate_ranks, estimate_training_memory
    from rankwise.memory.parameters import estimate_lora_params
    from rankwise.memory.settings import StepSettings
    from rankwise.records import (
        AdapterSpectrum,
        Baseline,
        ComparisonPlan,
        MemoryEstimate,
        ModelEstimate,
        ParameterCount,
        RankComparison,
        RankExperiment,
        RankProbe,
        Recommendation,
        ResizedAdapter,
        Trial,
    )
    from rankwise.spectrum.inspect import inspect_adapter
    from rankwise.spectrum.probe import probe_ranks
    from rankwise.spectrum.resize import resize_adapter

_HOME = {
    "AdapterSpectrum": "rankwise.records",
    "Baseline": "rankwise.records",
    "ComparisonConfig": "rankwise.compare.config",
    "ComparisonPlan": "rankwise.records",
    "Export": "rankwise.export.write",
    "MemoryEstimate": "rankwise.records",
    "ModelEstimate": "rankwise.records",
    "ParameterCount": "rankwise.records",
    "RankComparison": "rankwise.records",
    "RankExperiment": "rankwise.records",
    "RankProbe": "rankwise.records",
    "Recommendation": "rankwise.records",
    "ResizedAdapter": "rankwise.records",
    "RunError": "rankwise.errors",
    "StepSettings": "rankwise.memory.settings",
    "Trial": "rankwise.records",
    "UserError": "rankwise.errors",
    "estimate_lora_params": "rankwise.memory.parameters",
    "estimate_ranks": "rankwise.memory.estimate",
    "estimate_training_memory": "rankwise.memory.estimate",
    "export_recommendation": "rankwise.export.write",
    "inspect_adapter": "rankwise.spectrum.inspect",
    "plan_rank_comparison": "rankwise.compare.preview",
    "probe_ranks": "rankwise.spectrum.probe",
    "resize_adapter": "rankwise.spectrum.resize",
    "run_rank_comparison": "rankwise.compare.run",
}

__all__ = [
    "AdapterSpectrum",
    "Baseline",
    "ComparisonConfig",
    "ComparisonPlan",
    "Export",
    "MemoryEstimate",
    "ModelEstimate",
    "ParameterCount",
    "RankComparison",
    "RankExperiment",
    "RankProbe",
    "Recommendation",
    "ResizedAdapter",
    "RunError",
    "StepSettings",
    "Trial",
    "UserError",
    "estimate_lora_params",
    "estimate_ranks",
    "estimate_training_memory",
    "export_recommendation",
    "inspect_adapter",
    "plan_rank_comparison",
    "probe_ranks",
    "resize_adapter",
    "run_rank_comparison",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Imported here: it takes longer than all of this package that `rankwise --help` needs.
        from importlib.metadata import version

        return version("rankwise")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rankwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
