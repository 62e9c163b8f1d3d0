"""Ranks that differ between modules: as PEFT's configuration has them, and by a budget."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float64
from scipy.optimize import isotonic_regression
from torch import Tensor

from rankwise.errors import UserError


def commonest(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The value for most modules, and PEFT's pattern for the others.

    PEFT takes the first key that matches the end of a module's name as a regular expression. So a key is the whole
    name, from its start: a bare name would match modules whose names are longer, too.
    """
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}


def ranks_for_budget(
    energies: Mapping[str, Float64[Tensor, " _"]], costs: Mapping[str, int], params: int
) -> dict[str, int]:
    """A rank of each module, 1 at least, so that A and B of all have at most so many parameters.

    One direction after another goes to the module where it adds the most energy for its parameters, `costs` of it,
    until the next does not fit; so more parameters never take a rank from a module. `energies` are those of each
    module's directions, in order. What noise made to rise from one to the next is levelled first (isotonic
    regression). Nobody gets a direction without energy. Raises `UserError` where rank 1 does not fit everywhere.
    """
    least = sum(costs.values())
    if params < least:
        raise UserError(f"params: rank 1 everywhere takes {least:,} parameters, more than {params:,}: give more")
    levelled = {
        name: isotonic_regression(energy.numpy(), increasing=False).x[1:].clip(min=0)
        for name, energy in energies.items()
    }
    offered = [(gain / costs[name], name) for name, gains in levelled.items() for gain in gains.tolist() if gain > 0]
    ranks, left = dict.fromkeys(energies, 1), params - least
    # Gains of a module never rise and the sort is stable, so that its directions come in order.
    for _, name in sorted(offered, key=lambda offer: -offer[0]):
        if costs[name] > left:
            break
        ranks[name] += 1
        left -= costs[name]
    return ranks
