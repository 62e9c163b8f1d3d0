"""The page of a run: what the run directory holds, handed to `report`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.compare.config import ComparisonConfig, is_in_memory
from rankwise.compare.config_file import begun_with
from rankwise.compare.directory import DAMAGE, RunDirectory, read_comparison
from rankwise.compare.journal import Journal
from rankwise.durable import write_file
from rankwise.errors import RunError, shortened
from rankwise.records.plain import value_of
from rankwise.report.page import comparison_page


def write_page(run: Path | str) -> Path:
    """Write `report.html` into a run directory, and into those of its further bases; returns its path.

    Raises `UserError` where the run has not ended, `RunError` where its files are damaged.
    """
    path = Path(run)
    comparison = read_comparison(path)
    for other in comparison.over:
        _write_page(other.run)
    return _write_page(path)


def _write_page(path: Path) -> Path:
    directory, comparison = RunDirectory(path), read_comparison(path)
    results = directory.results(Journal(path / "journal.jsonl"))
    file = path / "comparison.json"
    try:
        setup = json.loads(file.read_text(encoding="utf-8"))
        page = comparison_page(
            comparison,
            list(results.values()),
            setup,
            base_bytes=value_of(int | None, setup.get("base_bytes")),
            command=command_of(begun_with(setup)),
        )
        page.encode()
    # Figures that no comparison has can be of the right type, and then it is too late to tell which file they are of.
    except (OSError, *DAMAGE) as error:
        raise RunError(
            f"{path} cannot be shown ({shortened(error)}): {file.name} or experiments.json is damaged; "
            "restore them from a copy"
        ) from error
    write_file(directory.page, lambda beside: beside.write_text(page, encoding="utf-8"))
    return directory.page


def command_of(config: Mapping[str, Any]) -> str:
    """The command that begins such a comparison, from its resolved options."""
    words = ["rankwise", "compare"]
    for name, value in config.items():
        if ComparisonConfig.is_default(name, value):
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option)
        elif is_in_memory(value):
            words += [option, "FILE"]
        else:
            words += [option, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join(words)
