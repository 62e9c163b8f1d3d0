"""Settings as a YAML document with comments before them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import yaml

from rankwise.report.text import one_line


def yaml_document(comments: Iterable[str], settings: Mapping[str, object]) -> str:
    """`comments`, a line each, then `settings` in their order.

    >>> print(yaml_document(["a\\nb"], {"learning_rate": 1e-5, "names": ["q", "v"]}), end="")
    # a b
    learning_rate: 1.0e-05
    names:
    - q
    - v
    """
    body = yaml.safe_dump(dict(settings), sort_keys=False, width=sys.maxsize)
    return commented(comments) + body


def commented(comments: Iterable[str]) -> str:
    return "".join(f"# {one_line(comment)}\n" for comment in comments)
