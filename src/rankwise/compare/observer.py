"""Whom a comparison tells how it goes, and of what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from rankwise.compare.backends import Workers
from rankwise.compare.prepare import Tell
from rankwise.compare.schedule import Leg
from rankwise.records import Trial
from rankwise.train.loop import StepReport


@dataclass(frozen=True)
class Stage:
    """The comparison turns to something else; `text` says to what, `share` how much of it is done, of 1."""

    text: str
    share: float | None = None


@dataclass(frozen=True)
class Planned:
    """A leg begins, without the trials that an earlier start of the run has trained; `steps` are those to the end.

    A trial sees `examples_per_step`. `dropped` are the trials whose learning rates go no further.
    """

    leg: Leg
    steps: int
    examples_per_step: int
    dropped: tuple[Trial, ...]


Told: TypeAlias = Stage | Planned | StepReport | Workers
Observer: TypeAlias = Callable[[Told], None]


def telling(observe: Observer) -> Tell:
    """What tells an observer of stages."""
    return lambda text, share=None: observe(Stage(text, share))


def ignore(event: object) -> None:
    return None
