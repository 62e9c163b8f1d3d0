"""A comparison as a table: on a terminal one that fits its width, with the notes below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rankwise.records import Baseline, FullFineTuning, RankComparison, RankExperiment
from rankwise.report.sheet import Heading, Sheet
from rankwise.report.terminal import WidestSheet
from rankwise.report.text import DASH, bytes_text, isolated, nll_text, seconds_text, share_text

_SPARE = 3
_ACCURACY = {
    "examples": "Accuracy",
    "tokens": "Accuracy (share of learned tokens)",
    "completions": "Accuracy (share of whole completions)",
    "choices": "Accuracy (share of examples whose right choice is the likeliest)",
}


@dataclass(frozen=True)
class _Column:
    """How one column reads the records."""

    header: str
    of_rank: Callable[[RankExperiment], str]
    of_baseline: Callable[[Baseline], str] = lambda _: DASH
    of_full: Callable[[FullFineTuning], str] = lambda _: DASH
    justify: Literal["left", "right"] = "right"
    spare: int = 0  # the higher, the sooner it is left out where a terminal is narrow; 0: never


def _accuracy(experiment: RankExperiment | FullFineTuning) -> str:
    mean, low, high = experiment.accuracy, experiment.accuracy_low, experiment.accuracy_high
    if low is None or high is None:
        return share_text(mean)
    return f"{share_text(mean)} ({100 * low:.1f}–{100 * high:.1f})"


def _difference(experiment: RankExperiment) -> str:
    """Positive is better; the limits are those of the verdict."""
    mean, low, high = experiment.difference, experiment.difference_low, experiment.difference_high
    if low is None or high is None or low == high:
        return DASH
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})".replace("-", "−")


def _rate(experiment: RankExperiment | FullFineTuning) -> str:
    return f"{experiment.learning_rate:g}"


def _params(experiment: RankExperiment | FullFineTuning) -> str:
    return f"{experiment.trainable_params:,}"


def _nll(experiment: RankExperiment | FullFineTuning | Baseline) -> str:
    return nll_text(experiment.nll)


def _time(experiment: RankExperiment | FullFineTuning) -> str:
    return seconds_text(experiment.training_time_seconds)


def _memory(experiment: RankExperiment | FullFineTuning) -> str:
    return bytes_text(experiment.peak_memory_bytes)


def _forgetting(experiment: RankExperiment | FullFineTuning) -> str:
    return DASH if experiment.forgetting is None else f"{experiment.forgetting:+.3f}".replace("-", "−")


_COLUMNS = (
    _Column("rank", lambda e: str(e.rank), lambda _: "0", lambda _: "full"),
    _Column("alpha", lambda e: f"{e.alpha:g}", spare=1),
    _Column("learning\nrate", _rate, of_full=_rate, spare=2),
    _Column("trainable\nparams", _params, of_full=_params, spare=1),
    _Column("accuracy\n(95 % interval)", _accuracy, lambda b: share_text(b.accuracy), _accuracy, justify="left"),
    _Column("NLL", _nll, _nll, _nll, spare=2),
    _Column("verdict", lambda e: e.verdict, justify="left"),
    _Column("difference\nto the largest rank", _difference, justify="left", spare=_SPARE),
    _Column("training\ntime", _time, of_full=_time),
    _Column("peak\nmemory", _memory, of_full=_memory),
)
_FORGETS = _Column("forgets", _forgetting, lambda _: "0", _forgetting)


def comparison_sheet(comparison: RankComparison, spare: int = _SPARE) -> Sheet:
    """A row for rank 0 and for each rank, without the columns that are more to spare; below, what the figures are."""
    retained = comparison.baseline.retained_nll is not None
    columns = [column for column in _COLUMNS if column.spare <= spare] + ([_FORGETS] if retained else [])
    rows = [[column.of_baseline(comparison.baseline) for column in columns]]
    both = len({experiment.use_rslora for experiment in comparison.experiments}) > 1
    for experiment in comparison.experiments:
        rank, *others = [column.of_rank(experiment) for column in columns]
        rows.append([f"{rank} rs" if both and experiment.use_rslora else rank, *others])
    if comparison.full is not None:
        rows.append([column.of_full(comparison.full) for column in columns])
    headings = [Heading(column.header, column.justify) for column in columns]
    return Sheet(_title(comparison), headings, rows, _caption(comparison, with_nll=spare >= 2))


def _title(comparison: RankComparison) -> str:
    base = "" if comparison.base in ("float32", "bfloat16") else f" in {comparison.base}"
    return f"{isolated(comparison.task)} on {isolated(comparison.model)}{base}"


def _caption(comparison: RankComparison, *, with_nll: bool) -> list[str]:
    experiments = comparison.experiments
    fewest, most = min(e.seeds for e in experiments), max(e.seeds for e in experiments)
    seeds = "1 seed" if most == 1 else f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    intervals = (
        "in brackets the 95 % interval, over seeds and examples both"
        if any(e.accuracy_low is not None for e in experiments)
        else "an interval needs two seeds or more"
        if most == 1
        else "no interval where all scores are alike"
    )
    rules = {"alpha/sqrt(rank)" if e.use_rslora else "alpha/rank" for e in experiments}
    classifies = comparison.accuracy_of == "examples"
    baseline = "the frozen base model with its head fitted to convergence" if classifies else "the base model as it is"
    accuracy = _ACCURACY[comparison.accuracy_of]
    unit = "example" if classifies else "token"
    scores = f"{accuracy} and NLL (nats per {unit})" if with_nll else accuracy
    lines = [
        f"Rank 0 is {baseline}; scaling is {', of ranks with rs '.join(sorted(rules))}.",
        f"{scores}: mean over {seeds} and the test examples; {intervals}.",
        "Training time: what training this rank alone takes, the median time of its step times the steps.",
        "Peak memory: of such a step with the base model in memory; a dash where the device has no counter.",
    ]
    if comparison.full is not None:
        lines.insert(1, "Full is full fine-tuning, all weights trained; it takes no part in the decision.")
    if comparison.baseline.retained_nll is not None:
        before = nll_text(comparison.baseline.retained_nll)
        lines.append(f"Forgets: by how much the NLL of the retained texts rises, {before} nats a token at rank 0.")
    return lines


def comparison_table(comparison: RankComparison) -> RenderableType:
    """A row for rank 0 and for each rank, and below it what the figures are."""
    return WidestSheet(partial(comparison_sheet, comparison), _SPARE)


def comparison_notes(comparison: RankComparison) -> RenderableType:
    """The comparison's notes, an item each; nothing where there are none."""
    notes = Table.grid(padding=(0, 1))
    for note in comparison.notes:
        notes.add_row("note:", Text(isolated(note)))
    return notes
