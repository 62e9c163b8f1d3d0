"""Where in a model a module is, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(?:.*?\.)??(\d+)\.(.+)")


def place(name: str) -> tuple[int | None, str]:
    """The layer, and the kind of projection: what the layers have in common, its parts' numbers left out.

    >>> place("model.layers.3.self_attn.q_proj"), place("h.0.mlp.experts.7.w1"), place("classifier.dense")
    ((3, 'self_attn.q_proj'), (0, 'mlp.experts.*.w1'), (None, 'classifier.dense'))
    """
    found = _LAYER.fullmatch(name)
    return (int(found[1]), re.sub(r"(?<=\.)\d+(?=\.|$)", "*", found[2])) if found else (None, name)


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their kind of projection, in the order in which kinds appear."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(place(name)[1], []).append(name)
    return kinds
