"""The options of a comparison from a YAML file, which may come from somebody else, or from a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from rankwise.compare.config import DATA, ComparisonConfig, located
from rankwise.errors import RunError, UserError, reason_of, shortened

_LONGEST, _MOST_OPEN = 100_000, 50


def read_config_file(path: Path) -> dict[str, Any]:
    """The options in a YAML file; data files in it are found from where it lies."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        # PyYAML's time grows with the square of the brackets that are open.
        if len(text) > _LONGEST or _most_open(text) > _MOST_OPEN:
            raise ValueError("a configuration is no longer than 100,000 characters, and no nest of brackets")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        # A number that stands alone is read as the file.
        several = "; several values are written 4,8" if path.name[:1].isdecimal() and not path.suffix else ""
        raise UserError(f"{path}: cannot be read ({error.strerror}){several}") from error
    # What YAML takes for a date or a number may be none, and PyYAML stumbles over each in its own way.
    except (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = reason_of(error).replace(' in "<unicode string>",', " in")
        raise UserError(f"{path}: not YAML ({reason})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold options, one `name: value` a line")
    if not all(isinstance(name, str) for name in values):
        raise UserError(f"{path}: the names of options are texts: {shortened(list(values))}")
    # Of the same name twice PyYAML keeps the last, without a word.
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    keys = [key for key, _ in pairs if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"]
    names = [key.value.replace("-", "_") for key in keys]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: {twice.replace('_', '-')} is given twice; leave one out")
    # A file may have come from somebody else; what runs their code is the user's own word.
    if values.get("trust-remote-code") or values.get("trust_remote_code"):
        raise UserError(f"{path}: trust-remote-code is for the command line alone: read that code, then give it there")
    for name in DATA:
        value = values.get(name)
        if not (value is None or isinstance(value, str)):
            raise UserError(f"{path}: {name} is a file or a data set's name, not {shortened(value)}")
    return located(values, path.parent)


def read_begun(run: Path) -> dict[str, Any]:
    """The options that a run was begun with, by their names; its files are found from where it was begun.

    Raises `RunError` where it is damaged.
    """
    from rankwise.compare.directory import DAMAGE

    file = run / "comparison.json"
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        config = begun_with(description)
        # Running a model's own code is the user's word each time.
        given = {
            name: value
            for name, value in config.items()
            if name != "trust_remote_code" and not ComparisonConfig.is_default(name, value)
        }
        return located(given, Path(description.get("directory", "")))
    except (OSError, *DAMAGE) as error:
        raise RunError(f"{file} is damaged ({reason_of(error)}); restore it from a copy, or start a new run") from error


def begun_with(description: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a run was begun with, by its comparison.json, where that of its first base is kept."""
    of_bases = {name: ComparisonConfig.default(name) for name in ("dtype", "quantize")}
    bases = description.get("bases")
    return {**description["config"], **({} if bases is None else {**of_bases, "bases": bases})}


def _most_open(text: str) -> int:
    """The most brackets that are open at once, whatever they stand in."""
    steps = (1 if letter in "[{" else -1 for letter in text if letter in "[]{}")
    return max(accumulate(steps), default=0)
