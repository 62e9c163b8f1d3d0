"""What a back end must do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

Values: TypeAlias = Mapping[str, str | int | float]  # bool is an int
Points: TypeAlias = Mapping[int, Mapping[str, float]]  # figures by step

SUMMARY = "comparison"  # the run of the comparison itself


@dataclass(frozen=True)
class Group:
    """A comparison: `name` is for people, `id` (hexadecimal) is its own wherever the run `directory` is moved."""

    name: str
    id: str
    directory: Path

    @property
    def label(self) -> str:
        """A name that no other comparison has."""
        return f"{self.name}-{self.id}"


class Tracker(Protocol):
    """A group's runs in one back end. Any method may raise anything; what it has taken until then stays.

    Runs are opened by their names, several at a time, and are closed with their outcome. A run that is opened again,
    by this process or a later one, is the same run.
    """

    def __init__(self, group: Group) -> None:
        """Raises where the back end cannot be used, before anything is trained."""

    def open(self, run: str, params: Values) -> int:
        """Begin a run or go on with it; the last step that it has, -1 where it has none."""

    def log(self, run: str, points: Points) -> None:
        """Add points to an open run, in the order of steps, all of them above the last one."""

    def close(self, run: str, outcome: Values) -> None:
        """End an open run; what it ended with replaces what an earlier end left."""
