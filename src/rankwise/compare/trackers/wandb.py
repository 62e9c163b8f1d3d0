"""Weights & Biases: a group for the comparison, a run for each trial, side by side in one process.

The project is WANDB_PROJECT, else `rankwise`; files lie in the run directory, or in WANDB_DIR. Run ids are made here,
so that a later start goes on with a run. Offline nothing can be asked: a later start writes from where training
goes on, under the same id, and `wandb sync` joins the parts.
"""

from __future__ import annotations

import os
from typing import Any

from rankwise.compare.trackers.tracker import Group, Points, Values


class WandB:
    def __init__(self, group: Group) -> None:
        import wandb

        # Else the first run would ask for a key on the terminal, in the midst of the work.
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError("nobody is logged in: wandb login, or set WANDB_MODE=offline")
        self._wandb = wandb
        self._group = group
        self._runs: dict[str, Any] = {}

    def open(self, run: str, params: Values) -> int:
        self._runs[run] = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "rankwise",
            group=self._group.label,
            name=run,
            id=f"{self._group.id}-{run}",
            resume="allow",
            reinit="create_new",
            config=dict(params),
            dir=os.environ.get("WANDB_DIR") or self._group.directory,
            # One machine's load is not a trial's, and a few dozen runs would each say where they are.
            settings=self._wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        return int(self._runs[run].starting_step) - 1

    def log(self, run: str, points: Points) -> None:
        for step, figures in points.items():
            self._runs[run].log(dict(figures), step=step)

    def close(self, run: str, outcome: Values) -> None:
        self._runs[run].summary.update(dict(outcome))
        self._runs.pop(run).finish()
