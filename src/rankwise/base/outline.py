"""The outline of a model: the names, kinds and shapes of its modules, without the model.

Targets are matched and parameters counted on it. torch and transformers take seconds to import, so the outlines of the
catalogue's models are shipped, in `outlines.json`, which `python -m tools.outlines` makes of transformers' code.
Mixtures of experts have none: what PEFT adapts there it asks of the model itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class OutlinedModule:
    """A module by its whole name and its class; `linear` is (d_in, d_out) of a linear layer, None of any other.

    `parameters` are the shapes of its own. One that several modules share belongs to the first of them.
    """

    name: str
    kind: str
    parameters: Mapping[str, tuple[int, ...]]
    linear: tuple[int, int] | None = None


@dataclass(frozen=True)
class Outline:
    """All modules in the model's order, first the model itself, whose name is empty; `output` is its output layer's."""

    modules: tuple[OutlinedModule, ...]
    output: str | None = None

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter's whole name and shape, once."""
        for module in self.modules:
            for name, shape in module.parameters.items():
                yield (f"{module.name}.{name}" if module.name else name), shape


@dataclass(frozen=True)
class Sizes:
    """What an estimate asks of a configuration.

    `causal`: it is fine-tuned as a language model. `vocabulary` is 0 where it is not, `hidden_size` None where nothing
    states it. `positions` is the longest sequence, None where nothing limits it. `heads` are those of a block's
    attention, which is computed at once where `sdpa` is false; each block runs `passes` times, as ALBERT's one.
    """

    causal: bool
    hidden_size: int | None
    vocabulary: int
    positions: int | None
    heads: int = 0
    sdpa: bool = True
    passes: int = 1


def shipped_outline(name: str) -> tuple[Outline, Sizes] | None:
    """Of the catalogue's model of that name, as it is fine-tuned: a language model, or a classifier of two labels.

    >>> outline, sizes = shipped_outline("llama-3.2-3b")
    >>> outline.output, sizes.vocabulary
    ('lm_head', 128256)
    """
    document = _documents().get(name)
    return None if document is None else read_outline(document)


def read_outline(document: Mapping[str, Any]) -> tuple[Outline, Sizes]:
    """What a line of `outlines.json` says."""
    modules = tuple(_unfolded("", document["modules"]))
    return Outline(modules, document["output"]), Sizes(**document["sizes"])


@cache
def _documents() -> Mapping[str, Any]:
    documents: Mapping[str, Any] = json.loads((files("rankwise") / "base" / "outlines.json").read_text("utf-8"))
    return documents


def _unfolded(name: str, node: list[Any]) -> Iterator[OutlinedModule]:
    """A node is [kind, parameters, linear, children]; of its last parts the empty ones are left out.

    A child that is named `0..27` stands for 28 that are alike.
    """
    kind, parameters, linear, children = node + [{}, None, {}][len(node) - 1 :]
    shapes = {key: tuple(shape) for key, shape in parameters.items()}
    yield OutlinedModule(name, kind, shapes, tuple(linear) if linear else None)
    for key, child in children.items():
        first, _, last = key.partition("..")
        for each in map(str, range(int(first), int(last) + 1)) if last else (key,):
            yield from _unfolded(f"{name}.{each}".removeprefix("."), child)
