"""Print the oldest versions that pyproject.toml allows, as constraints for pip; but torch's, which stays pinned."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXTRAS = ("offline", "quant", "ray")


def floors(project: dict[str, Any]) -> Iterator[str]:
    """Raises `SystemExit` for a dependency that names no oldest version."""
    optional = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *(one for extra in EXTRAS for one in optional[extra])]:
        found = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", requirement)
        if found is None:
            raise SystemExit(f"pyproject.toml: {requirement} names no oldest version")
        if found[1] != "torch":
            yield f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    file = Path(__file__).parent.parent / "pyproject.toml"
    print("\n".join(floors(tomllib.loads(file.read_text())["project"])))
