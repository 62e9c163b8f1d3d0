from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

from rankwise.base.catalogue import CatalogueEntry, catalogue, entry_config, find_entry

ENTRIES = list(catalogue().values())
every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])

# Fields that transformers reads from a config.json although the configuration's class does not declare them.
UNDECLARED = {
    "deberta-v2": {"position_buckets", "norm_rel_ebd", "share_att_key"},
    "gemma3_text": {"sliding_window_pattern"},
    "modernbert": {"global_attn_every_n_layers"},
    "qwen3_moe": {"head_dim"},
}


def says(found: Any, wanted: Any) -> bool:
    """Whether `found` holds everything that `wanted` does; a dictionary may hold more."""
    if isinstance(wanted, dict):
        return all(key in found and says(found[key], value) for key, value in wanted.items())
    return bool(found == wanted)


def test_names_and_hub_ids_tell_the_entries_apart() -> None:
    assert len(ENTRIES) >= 40
    assert all(name == entry.name == name.lower() for name, entry in catalogue().items())
    known_as = [known for entry in ENTRIES for known in (entry.name, entry.hub_id.lower())]
    assert len(set(known_as)) == len(known_as)


def test_nothing_in_the_file_is_given_twice() -> None:
    """Of two entries of one name, JSON silently keeps the last."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    text = (files("rankwise") / "base" / "catalogue.json").read_text(encoding="utf-8")
    assert list(json.loads(text, object_pairs_hook=unique)) == list(catalogue())


@every_entry
def test_the_model_has_exactly_the_parameters_of_its_entry(entry: CatalogueEntry) -> None:
    architectures = entry.config.get("architectures", [])
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    with torch.device("meta"):
        model = (AutoModelForCausalLM if causal else AutoModel).from_config(entry_config(entry))
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.params
    assert not causal or architectures == [type(model).__name__]


@every_entry
def test_the_configuration_says_what_the_entry_says(entry: CatalogueEntry) -> None:
    config = entry_config(entry)
    wanted = {config.attribute_map.get(field, field): value for field, value in entry.config.items()}
    assert says(config.to_dict(), wanted)
    assert says(type(config)(**config.to_dict()).to_dict(), wanted)


@every_entry
def test_transformers_knows_every_field(entry: CatalogueEntry) -> None:
    """A misspelt field would be kept as an attribute, and the default used in its place."""
    model_type = entry.config["model_type"]
    default = CONFIG_MAPPING[model_type]()
    known = default.to_dict().keys() | default.attribute_map.keys() | {"dtype"}
    assert entry.config.keys() - known <= UNDECLARED.get(model_type, set())


def test_building_a_configuration_leaves_the_entry_as_it_is() -> None:
    """transformers writes into the rope parameters that it is given."""
    for entry in ENTRIES:
        before = json.dumps(dict(entry.config))
        entry_config(entry).vocab_size = 1
        assert json.dumps(dict(entry.config)) == before


@pytest.mark.parametrize("name", ["llama-3.2-3b", "Llama-3.2-3B", "meta-llama/Llama-3.2-3B", "meta-llama/llama-3.2-3b"])
def test_an_entry_is_found_by_name_and_by_hub_id_whatever_the_case(name: str) -> None:
    assert find_entry(name) is catalogue()["llama-3.2-3b"]


@pytest.mark.parametrize("name", ["", "llama", "llama-3.2-3b ", "meta-llama/Llama-3.2-3B-Instruct", "embedded", "."])
def test_no_other_name_is_found(name: str) -> None:
    assert find_entry(name) is None


def test_looking_up_does_not_wait_for_torch() -> None:
    statement = (
        "import sys; from rankwise.base.catalogue import find_entry; find_entry('gpt2'); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
