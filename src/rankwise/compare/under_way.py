"""A comparison under way: what all of its parts need."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from rankwise.compare.backends import Backend
from rankwise.compare.directory import RunDirectory
from rankwise.compare.journal import Journal
from rankwise.compare.observer import Observer, telling
from rankwise.compare.prepare import Prepared
from rankwise.compare.schedule import Following


@dataclass(frozen=True)
class Run:
    """What is in memory, what is kept and where, who trains packs, and who is told."""

    prepared: Prepared
    directory: RunDirectory
    journal: Journal
    backend: Backend
    observe: Observer

    def tell(self, text: str, share: float | None = None) -> None:
        telling(self.observe)(text, share)

    def as_grid(self, ranks: Collection[int], following: Following | None = None) -> Run:
        """The same as a grid of these ranks, some of which follow the largest."""
        return replace(self, prepared=self.prepared.as_grid(ranks, following))
