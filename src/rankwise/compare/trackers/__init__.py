"""Where trials can be followed beside the terminal: TensorBoard, MLflow, W&B, Trackio.

A back end takes runs, points and outcomes, and tells how far a run goes that an earlier start left: it knows what
reached it, which a note of ours would only guess.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from rankwise.compare.trackers.mlflow import MLflow
from rankwise.compare.trackers.tensorboard import TensorBoard
from rankwise.compare.trackers.tracker import Group, Tracker
from rankwise.compare.trackers.trackio import Trackio
from rankwise.compare.trackers.wandb import WandB
from rankwise.errors import UserError, reason_of

BACK_ENDS: dict[str, type[Tracker]] = {  # by the names of their packages
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
}


def check_installed(names: Iterable[str]) -> None:
    """Raise `UserError` where a back end's package is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"report-to: {', '.join(missing)} not installed: pip install 'rankwise[trackers]'")


def connect(name: str, group: Group) -> Tracker:
    """A back end that is ready for a group's runs; `UserError` says why it is not."""
    try:
        return BACK_ENDS[name](group)
    # A back end's errors are of its own kinds, those of its network's and of its database's.
    except Exception as error:
        raise UserError(
            f"report-to: {name} cannot be used ({reason_of(error)}); put that right and go on with "
            f"--run {group.directory} --resume, or without it: add --report-to none"
        ) from error
