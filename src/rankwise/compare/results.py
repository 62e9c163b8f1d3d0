"""From trained trials and their test scores to the rows of a comparison. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from rankwise.compare.config import ComparisonConfig
from rankwise.decide.interval import crossed_interval
from rankwise.records import Interval, RankExperiment, Trial, TrialResult


@dataclass(frozen=True)
class TestScores:
    """Per-example scores of one rank's chosen trials, (seeds, examples) each."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    nll: np.ndarray
    correct: np.ndarray


def choose_learning_rates(results: Mapping[Trial, TrialResult], config: ComparisonConfig) -> dict[int, float]:
    """Each rank's learning rate with the lowest validation loss over all seeds; no entry where all diverged."""
    chosen = {}
    for rank in config.ranks:
        losses = {
            rate: fmean(results[config.trial(rank, rate, seed)].validation_nll for seed in config.seed_numbers)
            for rate in _tried(results, rank)
        }
        best = min(losses, key=lambda rate: losses[rate])
        if np.isfinite(losses[best]):
            chosen[rank] = best
    return chosen


def experiment(
    trial: Trial,
    scores: TestScores,
    groups: np.ndarray | None,
    *,
    trainable_params: int,
    training_time_seconds: float,
    peak_memory_bytes: int | None,
) -> RankExperiment:
    """One rank's row, from any of its chosen trials and the scores of all of them."""
    accuracy = crossed_interval(scores.correct.astype(np.float64), groups=groups)
    if accuracy.low == accuracy.high:
        # Every example right (or wrong) at every seed does not tell how another sample would vary.
        accuracy = Interval(accuracy.mean, None, None)
    return RankExperiment(
        rank=trial.rank,
        alpha=trial.alpha,
        use_rslora=trial.use_rslora,
        learning_rate=trial.learning_rate,
        trainable_params=trainable_params,
        accuracy=accuracy.mean,
        accuracy_low=None if accuracy.low is None else max(0.0, accuracy.low),
        accuracy_high=None if accuracy.high is None else min(1.0, accuracy.high),
        nll=float(scores.nll.mean(dtype=np.float64)),
        training_time_seconds=training_time_seconds,
        peak_memory_bytes=peak_memory_bytes,
        seeds=len(scores.nll),
    )


def notes_on_training(
    results: Mapping[Trial, TrialResult], chosen: Mapping[int, float], config: ComparisonConfig
) -> list[str]:
    """What a reader must know of the learning rates before believing a row."""
    notes = []
    diverged = [trial.id for trial, result in results.items() if result.status == "diverged"]
    if diverged:
        notes.append(f"{len(diverged)} of {len(results)} trials diverged: {', '.join(diverged)}")
    without = [rank for rank in config.ranks if rank not in chosen]
    if without:
        notes.append(f"rank {_listed(without)}: at every learning rate a seed diverged; add lower --learning-rates")
    if len(config.learning_rates) == 1:
        notes.append("one learning rate was tried: it may be fairer to some ranks than to others")
    else:
        notes += _notes_on_edges(results, chosen)
    if config.seeds == 1:
        notes.append("one seed says nothing about how much another would differ: no intervals")
    return notes


def _notes_on_edges(results: Mapping[Trial, TrialResult], chosen: Mapping[int, float]) -> Iterator[str]:
    edges: dict[tuple[float, str], list[int]] = {}
    for rank, rate in chosen.items():
        rates = _tried(results, rank)
        for edge, direction in ((rates[0], "lowest"), (rates[-1], "highest")):
            if rate == edge:
                edges.setdefault((edge, direction), []).append(rank)
    for (edge, direction), ranks in edges.items():
        yield (
            f"rank {_listed(ranks)}: the best learning rate, {edge:g}, is the {direction} that was tried; "
            "one beyond it may be better"
        )


def _tried(results: Mapping[Trial, TrialResult], rank: int) -> list[float]:
    return sorted({trial.learning_rate for trial in results if trial.rank == rank})


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
