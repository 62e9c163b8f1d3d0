"""Records as JSON has them."""

from __future__ import annotations

import math


def plain(value: object) -> object:
    """`value` as it is read back from JSON, which has no word for a figure that is not finite: that is None."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
