"""Whom a comparison tells how it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rankwise.compare.backends import Workers
from rankwise.compare.training import Planned
from rankwise.train.loop import StepReport


@dataclass(frozen=True)
class Stage:
    """The comparison turns to something else; `text` says to what, `share` how much of it is done, of 1."""

    text: str
    share: float | None = None


Observer = Callable[[Stage | Planned | StepReport | Workers], None]


def ignore(event: object) -> None:
    return None
