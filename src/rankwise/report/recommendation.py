"""The answer in a few lines."""

from __future__ import annotations

from rich.console import RenderableType

from rankwise.records import Doubling, Recommendation
from rankwise.report.sheet import FACTS, Sheet
from rankwise.report.terminal import terminal_table
from rankwise.report.text import bytes_text, isolated, seconds_text


def recommendation_table(recommendation: Recommendation) -> RenderableType:
    """The answer, below the table."""
    return terminal_table(recommendation_sheet(recommendation))


def headline(recommendation: Recommendation) -> str:
    """The answer in a sentence."""
    rank = recommendation.rank
    if rank is None:
        gained = recommendation.status != "no_gain"
        return "No rank yet: the data cannot tell." if gained else "No rank: none is shown to gain over the base model."
    return {
        "resolved": f"Rank {rank} is enough.",
        "not_plateaued": f"Rank {rank} so far: a larger one may still gain.",
    }.get(recommendation.status, f"Rank {rank} for now: the data cannot tell yet.")


def recommendation_sheet(recommendation: Recommendation) -> Sheet:
    """A line each for the answer, why, what twice the rank takes, and what the answer does not know."""
    return Sheet("Recommendation", FACTS, _lines(recommendation))


def _lines(recommendation: Recommendation) -> list[tuple[str, str]]:
    lines = [("answer", _answer(recommendation)), ("why", _sentence(recommendation.reason))]
    if recommendation.rank is not None:
        if recommendation.doubling is not None:
            lines.append(("double", f"r={2 * recommendation.rank} takes {_doubling(recommendation.doubling)}"))
        lines.append(("holds for", recommendation.holds_for))
        lines.append(("unknown", "; ".join(recommendation.unknown)))
    return lines


def _answer(recommendation: Recommendation) -> str:
    if recommendation.rank is None:
        return (
            "no gain is shown: no rank can be named"
            if recommendation.status == "no_gain"
            else "unresolved: no rank yet"
        )
    targets = recommendation.target_modules
    scaling = "alpha/sqrt(rank)" if recommendation.use_rslora else "alpha/rank"
    settings = (
        f"rank {recommendation.rank}, alpha {recommendation.alpha:g}, scaling {scaling}, "
        f"learning rate {recommendation.learning_rate:g}, "
        f"target modules {isolated(targets if isinstance(targets, str) else ','.join(targets))}"
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
