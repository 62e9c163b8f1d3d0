"""JSON documents on standard output, and a last line that nothing cuts short."""

from __future__ import annotations

import json
import signal
import sys


def print_json(document: dict[str, object]) -> None:
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


def ignore_interrupts() -> None:
    """From now on: the program is ending, and a second interrupt a moment after the first has nothing to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
