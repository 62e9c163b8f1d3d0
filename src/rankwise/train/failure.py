"""What a device may do to a run: have no more memory, or fail (a GPU that fell off its bus, a restarted driver)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rankwise.errors import RunError

_OUT_OF_MEMORY = re.compile(
    "allocate memory|not enough memory|error: out of memory|STATUS_ALLOC_FAILED"
    # oneDNN's, on a CPU; what it has no kernel for, it says of a primitive's descriptor.
    "|could not create a (primitive|memory)$"
)
# As torch words it; the class came with torch 2.8, and not every call raises it.
_FAILED = re.compile(r"(CUDA|HIP|XPU|cuDNN|MIOpen)( driver)? error: ")


@contextmanager
def device_failure_told(advice: str) -> Iterator[None]:
    """A device's failure in one line, with what to do. Memory that is out is no failure."""
    try:
        yield
    except RuntimeError as error:
        if not is_device_failure(error):
            raise
        # Further lines are hints to who debugs kernels.
        raise RunError(f"the device failed ({str(error).splitlines()[0]}); {advice}") from error


def is_device_failure(error: Exception) -> bool:
    told = isinstance(error, RuntimeError) and _FAILED.match(str(error)) is not None
    return told or isinstance(error, getattr(torch, "AcceleratorError", ()))


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
