"""From the chosen trials and their test scores to rows, verdicts and a recommendation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankwise.compare.choice import Choice, notes_on_training
from rankwise.compare.forgetting import NOTHING_RETAINED, Forgotten
from rankwise.decide.guards import macro_f1, matthews, pseudo_values
from rankwise.decide.interval import crossed_interval, share_interval
from rankwise.decide.reason import reason
from rankwise.decide.verdict import CONFIDENCE, Decision, Margin, RankVerdict, decide
from rankwise.errors import RunError
from rankwise.records import (
    Doubling,
    Guard,
    Interval,
    Metric,
    RankExperiment,
    Recommendation,
    Scores,
    StopReason,
    Trial,
    loss_in,
)
from rankwise.tasks.task import Task

_NAMES = {"nll": "NLL", "accuracy": "accuracy", "macro_f1": "macro-F1", "mcc": "Matthews correlation"}
_OF_CLASSES = {"macro_f1": macro_f1, "mcc": matthews}
_FEW = 200  # test examples: with fewer, a loss that falls on few of them is often not seen (docs/decision.md)


@dataclass(frozen=True)
class TestData:
    """What the test split knows of its examples: labels, all 0 in instruction tuning, and clusters if there are any."""

    __test__ = False

    labels: np.ndarray
    classes: int
    groups: np.ndarray | None

    @classmethod
    def of(cls, task: Task) -> TestData:
        return cls(task.test.labels, len(task.labels), task.test.groups)

    @property
    def independent(self) -> int:
        """How many groups of examples there are, or examples where these are in none."""
        return len(self.labels) if self.groups is None else len(np.unique(self.groups))

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("nll", "accuracy", *(_OF_CLASSES if self.classes else ()))

    def values(self, metric: str, scores: Scores) -> np.ndarray:
        """Each example's part in a metric, more is better; a seed's mean is its metric."""
        if metric == "nll":
            return -scores.nll
        if metric == "accuracy":
            return scores.correct.astype(np.float64)
        assert scores.predicted is not None
        return pseudo_values(_OF_CLASSES[metric], scores.predicted, self.labels, self.classes)

    def mean(self, metric: str, scores: Scores) -> float | None:
        """None where it is a metric of classes, and there are none."""
        return float(self.values(metric, scores).mean()) if metric in self.metrics else None


@dataclass(frozen=True)
class Taken:
    """What training one rank alone takes."""

    trainable_params: int
    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Answer:
    """A comparison under one scaling."""

    experiments: tuple[RankExperiment, ...]
    recommendation: Recommendation
    notes: tuple[str, ...]


def answer(
    choice: Choice,
    scores: Mapping[int, Scores],
    baseline: Scores,
    data: TestData,
    taken: Mapping[int, Taken],
    holds_for: str,
    stopped: StopReason | None,
    forgotten: Mapping[int, Forgotten],
) -> Answer:
    """Decide on the scores of the chosen trials. `holds_for` says in words what was trained, `stopped` why no more was.

    `forgotten` has an entry for each rank, or none where no texts are retained; it has no part in the decision.
    A rank with a test loss that is not finite has a row and no verdict. Raises `RunError` where no rank is left.
    """
    finite = {rank: of for rank, of in scores.items() if np.isfinite(of.nll).all()}
    notes = notes_on_training(choice)
    if without := ", ".join(str(rank) for rank in scores if rank not in finite):
        notes.append(f"rank {without}: a test loss is not finite, so it takes no part in the decision")
    if not finite or not np.isfinite(baseline.nll).all():
        raise RunError("test losses are not finite at any rank, or at rank 0: start again with --dtype float32")
    decision = judge(choice, finite, baseline, data)
    verdicts = {verdict.rank: verdict for verdict in decision.verdicts}
    rows = []
    for rank, of in scores.items():
        row = _row(choice.by_rank[rank][0], of, data, taken[rank], verdicts.get(rank))
        low, high = _simultaneous(choice.config.metric, of, data, len(scores))
        rows.append(replace(row, simultaneous_low=low, simultaneous_high=high, **forgotten.get(rank, NOTHING_RETAINED)))
    recommendation = _recommend(choice, decision, rows, finite, baseline, data, holds_for, stopped)
    return Answer(tuple(rows), recommendation, tuple(notes))


def _row(trial: Trial, scores: Scores, data: TestData, taken: Taken, verdict: RankVerdict | None) -> RankExperiment:
    """One rank's row, from any of its chosen trials and the scores of all of them."""
    accuracy = share_interval(data.values("accuracy", scores), groups=data.groups)
    difference = Interval(float("nan"), None, None) if verdict is None else verdict.difference
    return RankExperiment(
        rank=trial.rank,
        alpha=trial.alpha,
        use_rslora=trial.use_rslora,
        learning_rate=trial.learning_rate,
        trainable_params=taken.trainable_params,
        accuracy=accuracy.mean,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        nll=float(scores.nll.mean(dtype=np.float64)),
        macro_f1=data.mean("macro_f1", scores),
        mcc=data.mean("mcc", scores),
        training_time_seconds=taken.seconds,
        peak_memory_bytes=taken.peak_bytes,
        seeds=len(scores.nll),
        verdict="unresolved" if verdict is None else verdict.verdict,
        difference=difference.mean,
        difference_low=difference.low,
        difference_high=difference.high,
    )


def _simultaneous(metric: Metric, scores: Scores, data: TestData, ranks: int) -> tuple[float | None, float | None]:
    """Limits of the metric that hold for so many ranks at once with 95 %, by Bonferroni's inequality."""
    if not np.isfinite(scores.nll).all():
        return None, None
    limits = crossed_interval(data.values(metric, scores), groups=data.groups, confidence=1 - 0.05 / ranks)
    if limits.low is None or limits.high is None or limits.low == limits.high:
        return None, None
    if metric == "nll":
        return max(0.0, -limits.high), -limits.low
    return max(0.0, limits.low), min(1.0, limits.high)


def judge(
    choice: Choice,
    scores: Mapping[int, Scores],
    baseline: Scores,
    data: TestData,
    confidence: float = CONFIDENCE,
) -> Decision:
    """The verdicts on ranks by their finite scores, in the metric that decides."""
    metric = choice.config.metric

    def losses(of: Scores) -> np.ndarray:
        return loss_in(metric, nll=of.nll, accuracy=data.values("accuracy", of))

    curves = [[[one.loss(metric) for one in result.evaluations] for result in choice.trained(rank)] for rank in scores]
    return decide(
        np.stack([losses(of) for of in scores.values()]),
        losses(baseline)[0],
        ranks=list(scores),
        margin=Margin(choice.config.keep, choice.config.margin),
        groups=data.groups,
        validation=np.array(curves),
        missing=sorted({trial.rank for trial in choice.results} - set(scores)),
        confidence=confidence,
    )


def _recommend(
    choice: Choice,
    decision: Decision,
    experiments: Sequence[RankExperiment],
    scores: Mapping[int, Scores],
    baseline: Scores,
    data: TestData,
    holds_for: str,
    stopped: StopReason | None,
) -> Recommendation:
    """The decision with all that the next training needs, what else was measured, and what is not known."""
    config, of_rank = choice.config, {experiment.rank: experiment for experiment in experiments}
    chosen = of_rank.get(decision.rank or 0)
    guards: tuple[Guard, ...] = ()
    largest = stopped in ("memory", "rank limit")
    why = reason(decision, config.metric, one_seed=config.seeds == 1, grouped=data.groups is not None, largest=largest)
    if chosen is not None:
        guards = _guards(config.metric, decision, chosen.rank, scores, baseline, data)
        warnings = [_warning(guard, decision.verdicts[-1].rank) for guard in guards if guard.worse]
        why = "; ".join([why, *warnings, *_worse_than_frozen(guards, scores[chosen.rank], baseline, data)])
    smallest = min(of_rank)
    retained = of_rank[smallest].retained_nll is not None
    measurable = config.task == "instruction" and not retained
    forgets = f"what is forgotten of other texts{' than those retained' if retained else ''}"
    forgets += ": not measured, --retain would" if measurable else ""
    unknown = ["other tasks, data and base models", "longer training", forgets]
    if choice.following:
        unknown.insert(0, f"other learning rates at rank {', '.join(map(str, choice.following))}")
    if decision.rank == smallest > 1:
        unknown.insert(0, f"ranks below {smallest}")
    if decision.rank not in (None, decision.verdicts[-1].rank):
        unknown.insert(0, _rare_failures(config.seeds))
        if data.independent < _FEW:
            unknown.insert(0, _rare(data))
    if decision.missing:
        unknown.insert(0, f"rank {', '.join(map(str, decision.missing))}, which has no result")
    return Recommendation(
        status=decision.status,
        rank=decision.rank,
        alpha=None if chosen is None else chosen.alpha,
        use_rslora=None if chosen is None else chosen.use_rslora,
        learning_rate=None if chosen is None else chosen.learning_rate,
        target_modules=config.target_modules,
        margin=decision.margin,
        keep=decision.keep,
        metric=config.metric,
        reason=why,
        needed=decision.needed,
        guards=guards,
        doubling=None if chosen is None else _doubling(chosen, of_rank.get(2 * chosen.rank)),
        growing=decision.growing,
        holds_for=holds_for,
        unknown=tuple(unknown),
        stopped=stopped,
    )


def _guards(
    decided_on: Metric,
    decision: Decision,
    rank: int,
    scores: Mapping[int, Scores],
    baseline: Scores,
    data: TestData,
) -> tuple[Guard, ...]:
    """The metrics that did not decide, at a rank against the largest, whose gain is shown."""
    assert decision.keep is not None

    guards = []
    for metric in data.metrics:
        if metric == decided_on:
            continue
        mine, reference = (data.values(metric, scores[each]) for each in (rank, decision.verdicts[-1].rank))
        difference = crossed_interval(mine - reference, groups=data.groups, confidence=2 * CONFIDENCE - 1)
        gain = float(reference.mean() - data.values(metric, baseline).mean())
        allowed = (1 - decision.keep) * max(gain, 0.0)
        worse = difference.high is not None and difference.high < -allowed
        guards.append(Guard(metric, difference.mean, difference.low, difference.high, worse=worse))
    return tuple(guards)


def _worse_than_frozen(guards: Sequence[Guard], scores: Scores, baseline: Scores, data: TestData) -> list[str]:
    """The guards by which the recommended rank is shown to be worse than rank 0."""
    worse = []
    for guard in guards:
        gained = data.values(guard.metric, scores) - data.values(guard.metric, baseline)
        high = crossed_interval(gained, groups=data.groups, confidence=2 * CONFIDENCE - 1).high
        if high is not None and high < 0:
            worse.append(f"but its {_NAMES[guard.metric]} is worse than the frozen model's, 95 % sure")
    return worse


def _rare_failures(seeds: int) -> str:
    """The largest share of trainings that fail and of which so many seeds have none with 5 %."""
    share = 100 * (1 - 0.05 ** (1 / seeds))
    return f"failures that few trainings have: {seeds} seeds may have none of what befalls {share:.2g} %"


def _rare(data: TestData) -> str:
    """The largest kind of example that so many lack with 5 %, about 3/n: Hanley & Lippman-Hand 1983, JAMA 249."""
    what = "examples" if data.groups is None else "groups of examples"
    of_all = f"{100 * (1 - 0.05 ** (1 / data.independent)):.2g} % of all"
    return f"losses on rare examples: {data.independent} test {what} may have none of a kind that is {of_all}"


def _warning(guard: Guard, reference: int) -> str:
    unit = 1 if guard.metric == "nll" else 100
    name = f"{_NAMES[guard.metric]} is worse than at r={reference} by {-unit * guard.difference:.2g}"
    return f"but its {name}, 95 % sure by more than the margin's share"


def _doubling(chosen: RankExperiment, double: RankExperiment | None) -> Doubling | None:
    if double is None:
        return None
    peaks = (double.peak_memory_bytes, chosen.peak_memory_bytes)
    return Doubling(
        trainable_params=double.trainable_params - chosen.trainable_params,
        training_time_seconds=double.training_time_seconds - chosen.training_time_seconds,
        peak_memory_bytes=None if peaks[0] is None or peaks[1] is None else peaks[0] - peaks[1],
    )
