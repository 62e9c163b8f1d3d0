"""tqdm's bars, which show in notebooks and on terminals alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from rankwise.compare.observer import Observer, Planned, Told
from rankwise.progress.board import Board
from rankwise.report.text import nll_text


@contextmanager
def bars() -> Iterator[Observer]:
    """An observer that shows a bar for what goes on; in training with examples a second, and each rank's train loss.

    with bars() as observe:
        comparison = run_rank_comparison(config, observe=observe)
    """
    shown = _Bars()
    try:
        yield shown.take
    finally:
        shown.close()


@dataclass
class _Bars:
    board: Board = field(default_factory=Board)
    bar: Any = None

    def take(self, event: Told) -> None:
        before = self.board.heading
        self.board.take(event)
        if self.bar is None or isinstance(event, Planned) or self.board.heading != before:
            self.close()
            self.bar = self._new_bar()
        losses = (f"r={row.name} {nll_text(row.train_nll)}" for row in self.board.rows if row.train_nll is not None)
        self.bar.set_postfix_str(", ".join(losses), refresh=False)
        self.bar.update(self.board.done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _new_bar(self) -> Any:
        total = self.board.total
        if self.board.training is not None:
            form: dict[str, Any] = {"unit": " examples", "unit_scale": True}
        else:
            share = "" if total is None else ": {percentage:3.0f}%|{bar}|"
            form = {"bar_format": "{desc}" + share + " {elapsed}"}
        # Packs step together, each in its own stride: without miniters tqdm would wait for the longest that it saw.
        return tqdm(desc=self.board.heading, total=total, leave=False, dynamic_ncols=True, miniters=0, **form)
