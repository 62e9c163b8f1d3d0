"""JSON documents on standard output."""

from __future__ import annotations

import json
import sys


def print_json(document: dict[str, object]) -> None:
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()
