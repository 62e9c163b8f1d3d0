"""The outlines of the catalogue's models, as the installed transformers builds them, for the package to ship.

python -m tools.outlines    # after a change of catalogue.json; writes src/rankwise/base/outlines.json
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rankwise.base.outline
from rankwise.base.catalogue import CatalogueEntry, catalogue, entry_config
from rankwise.base.outline import Outline, Sizes
from rankwise.base.shapes import outline_of, sizes_of
from rankwise.memory.build import meta_step_model
from rankwise.memory.settings import StepSettings

SHIPPED = Path(rankwise.base.outline.__file__).with_name("outlines.json")


def main() -> None:
    documents = {}
    for name, entry in catalogue().items():
        outline, sizes = live_outline(entry)
        if not has_experts(outline):
            documents[name] = document_of(outline, sizes)
    # A line for each, so that a change shows which models it is of.
    lines = (f"{json.dumps(name)}: {json.dumps(each, separators=(',', ':'))}" for name, each in documents.items())
    SHIPPED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{SHIPPED}: {len(documents)} outlines, {SHIPPED.stat().st_size:,} bytes")


def live_outline(entry: CatalogueEntry) -> tuple[Outline, Sizes]:
    """Of the model that an estimate of this entry is made of."""
    model = meta_step_model(entry_config(entry), StepSettings())
    return outline_of(model), sizes_of(model)


def has_experts(outline: Outline) -> bool:
    """Whether some parameter holds the matrices of several experts."""
    return any(len(shape) == 3 for _, shape in outline.parameters())


def document_of(outline: Outline, sizes: Sizes) -> dict[str, Any]:
    """What `rankwise.base.outline.read_outline` reads: the modules as a tree, of which what repeats is folded."""
    nodes: dict[str, list[Any]] = {}
    for module in outline.modules:
        nodes[module.name] = node = [module.kind, dict(module.parameters), module.linear, {}]
        if module.name:
            parent, _, name = module.name.rpartition(".")
            nodes[parent][3][name] = node
    return {"sizes": asdict(sizes), "output": outline.output, "modules": _folded(nodes[""])}


def _folded(node: list[Any]) -> list[Any]:
    kind, parameters, linear, children = node
    runs: list[tuple[str, str, list[Any]]] = []  # the first and last name of children that are alike
    for name, child in children.items():
        folded = _folded(child)
        if runs and name.isdecimal() and runs[-1][1:] == (str(int(name) - 1), folded):
            runs[-1] = runs[-1][0], name, folded
        else:
            runs.append((name, name, folded))
    folded = [
        kind,
        parameters,
        linear,
        {first if first == last else f"{first}..{last}": child for first, last, child in runs},
    ]
    while not folded[-1]:
        folded.pop()
    return folded


if __name__ == "__main__":
    main()
