"""What training makes a model forget: the NLL of retained texts after it against rank 0's. Pure."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from rankwise.decide.interval import crossed_interval
from rankwise.records import Interval, Scores


class Forgotten(TypedDict):
    """The fields of an experiment that say what it forgets; None where no texts are retained."""

    retained_nll: float | None
    forgetting: float | None
    forgetting_low: float | None
    forgetting_high: float | None


NOTHING_RETAINED = Forgotten(retained_nll=None, forgetting=None, forgetting_low=None, forgetting_high=None)


def forgotten(before: Scores, after: Scores, groups: np.ndarray | None) -> Forgotten:
    """The rise of the texts' NLL from rank 0, (1, texts), to trials of all seeds, (seeds, texts).

    Without limits where a loss is not finite.
    """
    rises = after.nll.astype(np.float64) - before.nll
    rise = crossed_interval(rises, groups=groups) if np.isfinite(rises).all() else Interval(rises.mean(), None, None)
    return Forgotten(
        retained_nll=float(after.nll.mean(dtype=np.float64)),
        forgetting=float(rise.mean),
        forgetting_low=rise.low,
        forgetting_high=rise.high,
    )
