"""The recommended adapter as a model repository: a folder, and its way to the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rankwise.errors import RunError, UserError, reason_of
from rankwise.export.card import model_card
from rankwise.export.finding import Finding


def check_repository(name: str) -> None:
    """Raise `UserError` where this is not USER/NAME as the hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"hub:{name} names no repository: {reason_of(error)}") from error
    if name.count("/") != 1:
        raise UserError(f"hub:{name} names no repository: give hub:USER/NAME")


def write_folder(directory: Path, finding: Finding, repository: str) -> None:
    """Write the trained adapter and its card into an empty directory."""
    # These alone, and no links: a run from elsewhere could have put anything of this machine's beside them.
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        source = finding.comparison.adapter / name
        if source.is_symlink() or not source.is_file():
            raise RunError(f"{source} is missing or a link, which is not sent anywhere; restore it from a copy")
        shutil.copyfile(source, directory / name)
    if finding.is_local:
        # Where this machine has its base model is of no use to another, and nobody's business.
        file = directory / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": finding.model_name}
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(model_card(finding, repository), encoding="utf-8")


def upload(folder: Path, repository: str) -> str:
    """Send a folder to the hub and return its address; a repository that is not there yet is made, a private one."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="A LoRA adapter and its evidence")
    # The hub's client, its transport and its tokens have no error in common.
    except Exception as error:
        raise RunError(
            f"{folder} could not be sent to hub:{repository}: {type(error).__name__}: {reason_of(error)}; "
            "look at the connection, and whose login this is (hf auth whoami)"
        ) from error
    return str(address)
