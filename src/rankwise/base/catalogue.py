"""The configurations of well-known open models, so that their shapes are known without network or weights.

An entry keeps the fields of the `config.json` on the hub that decide shapes and code paths, in the
spelling of transformers 5; what it leaves out has transformers' default. `params` is the exact
parameter count, tied embeddings counted once: of the causal language model where `architectures`
names one, else of the `AutoModel` without a head.

Some entries are not all of what the hub has. Gemma 3 from 4B up is the language model alone, without
the vision tower. Phi-3.5-mini and Phi-4-mini lack the long tables of their rope scaling: these
change positions, but no shape and no byte.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class CatalogueEntry:
    """One model: its name here, its id on the hub, its number of parameters, and the fields of its configuration."""

    name: str
    hub_id: str
    params: int
    config: Mapping[str, Any]


@cache
def catalogue() -> Mapping[str, CatalogueEntry]:
    """Every entry by its name, in lower case; by family, then by size.

    >>> catalogue()["llama-3.2-3b"].params
    3212749824
    """
    entries = json.loads((files("rankwise") / "base" / "catalogue.json").read_text(encoding="utf-8"))
    return MappingProxyType({name: CatalogueEntry(name=name, **entry) for name, entry in entries.items()})


def find_entry(name: str) -> CatalogueEntry | None:
    """The entry of that name or hub id, whatever its case; None where there is none.

    >>> find_entry("meta-llama/Llama-3.2-3B").name
    'llama-3.2-3b'
    """
    wanted = name.lower()
    return next((entry for entry in catalogue().values() if wanted in (entry.name, entry.hub_id.lower())), None)


def entry_config(entry: CatalogueEntry) -> PreTrainedConfig:
    """The configuration as transformers makes it of the entry's fields."""
    from transformers import CONFIG_MAPPING

    # transformers fills defaults into the nested rope parameters that it is given.
    fields = copy.deepcopy(dict(entry.config))
    return CONFIG_MAPPING[fields.pop("model_type")](**fields)
