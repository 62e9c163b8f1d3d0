"""The answer on a terminal, below the table."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rankwise.records import Doubling, Recommendation
from rankwise.report.text import bytes_text, seconds_text


def recommendation_table(recommendation: Recommendation) -> RenderableType:
    """A line each for the answer, why, what twice the rank takes, and what the answer does not know."""
    table = Table.grid(padding=(0, 2))
    for name, text in recommendation_lines(recommendation):
        table.add_row(Text(name), Text(text))
    return table


def recommendation_lines(recommendation: Recommendation) -> list[tuple[str, str]]:
    """The same as names and texts."""
    lines = [("answer", _answer(recommendation)), ("why", _sentence(recommendation.reason))]
    if recommendation.rank is not None:
        if recommendation.doubling is not None:
            lines.append(("double", f"r={2 * recommendation.rank} takes {_doubling(recommendation.doubling)}"))
        lines.append(("holds for", recommendation.holds_for))
        lines.append(("unknown", "; ".join(recommendation.unknown)))
    return lines


def _answer(recommendation: Recommendation) -> str:
    if recommendation.rank is None:
        return "no gain: no rank can be named" if recommendation.status == "no_gain" else "unresolved: no rank yet"
    targets = recommendation.target_modules
    scaling = "alpha/sqrt(rank)" if recommendation.use_rslora else "alpha/rank"
    settings = (
        f"rank {recommendation.rank}, alpha {recommendation.alpha:g}, scaling {scaling}, "
        f"learning rate {recommendation.learning_rate:g}, "
        f"target modules {targets if isinstance(targets, str) else ','.join(targets)}"
    )
    before = {"resolved": "", "not_plateaued": "not plateaued; until a larger rank is tried: "}
    return before.get(recommendation.status, "unresolved; until more is known: ") + settings


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:] + "." if not reason.startswith("r=") else reason + "."


def _doubling(doubling: Doubling) -> str:
    parts = [f"{doubling.trainable_params:+,} parameters", f"{_signed(doubling.training_time_seconds)} of training"]
    if doubling.peak_memory_bytes is not None:
        sign = "−" if doubling.peak_memory_bytes < 0 else "+"
        parts.append(f"{sign}{bytes_text(abs(doubling.peak_memory_bytes))} at the peak")
    return ", ".join(parts)


def _signed(seconds: float) -> str:
    return f"{'−' if seconds < 0 else '+'}{seconds_text(abs(seconds))}"
