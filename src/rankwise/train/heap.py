"""Memory that training frees and takes again at every step, where malloc is glibc's; and memory that is out."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rankwise.errors import RunError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # `mallopt`'s names for them, in glibc's malloc.h
_OUT_OF_MEMORY = re.compile("allocate memory|not enough memory|error: out of memory|STATUS_ALLOC_FAILED")


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


@contextmanager
def out_of_memory_told(advice: str) -> Iterator[None]:
    """Out of memory in one line, on whatever device, with what to do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"out of memory: {advice}") from error


def is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch has no class of its own for this, nor where CUDA's libraries find no room.
    told = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)
