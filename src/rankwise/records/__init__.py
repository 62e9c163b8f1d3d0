"""Frozen records that cross every border of the house; no torch, no logic beyond arithmetic."""

from rankwise.records.comparison import Baseline, ComparisonPlan, FullFineTuning, RankComparison, RankExperiment
from rankwise.records.estimate import (
    Calibration,
    LayerGroup,
    MemoryEstimate,
    MemoryParts,
    ModelEstimate,
    ParameterCount,
    RankEstimate,
    TrainingCost,
)
from rankwise.records.probe import ConfirmedSpectrum, ProbePoint, RankPattern, RankProbe
from rankwise.records.recommendation import (
    Doubling,
    Guard,
    Interval,
    Metric,
    Needed,
    Recommendation,
    Status,
    StopReason,
    Verdict,
)
from rankwise.records.spectrum import AdapterSpectrum, GroupSpectrum, ModuleSpectrum, ResizedAdapter, ResizedModule
from rankwise.records.trial import Evaluation, Scores, Trial, TrialResult, TrialStatus, scaling_of

__all__ = [
    "AdapterSpectrum",
    "Baseline",
    "Calibration",
    "ComparisonPlan",
    "ConfirmedSpectrum",
    "Doubling",
    "Evaluation",
    "FullFineTuning",
    "GroupSpectrum",
    "Guard",
    "Interval",
    "LayerGroup",
    "MemoryEstimate",
    "MemoryParts",
    "Metric",
    "ModelEstimate",
    "ModuleSpectrum",
    "Needed",
    "ParameterCount",
    "ProbePoint",
    "RankComparison",
    "RankEstimate",
    "RankExperiment",
    "RankPattern",
    "RankProbe",
    "Recommendation",
    "ResizedAdapter",
    "ResizedModule",
    "Scores",
    "Status",
    "StopReason",
    "TrainingCost",
    "Trial",
    "TrialResult",
    "TrialStatus",
    "Verdict",
    "scaling_of",
]
