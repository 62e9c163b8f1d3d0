"""Memory that training frees and takes again at every step, where malloc is glibc's."""

from __future__ import annotations

import ctypes
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # `mallopt`'s names for them, in glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep what is freed for what is allocated next, for the rest of the process.

    By default every block above 32 MiB is mapped anew, and the kernel fills its pages with zeros: that can be most of
    a step of a pack on a CPU, whose activations are that large.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Give the system what is freed and kept."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_libc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
