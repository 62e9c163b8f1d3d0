"""A device that fails under a run: a GPU that fell off its bus, a driver that was restarted, a kernel that crashed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rankwise.errors import RunError

# As torch words it; the class came with torch 2.8, and not every call raises it.
_FAILED = re.compile(r"(CUDA|HIP|XPU|cuDNN|MIOpen)( driver)? error: ")


@contextmanager
def device_failure_told(advice: str) -> Iterator[None]:
    """A device's failure in one line, with what to do. Memory that is out is none: see `heap.out_of_memory_told`."""
    try:
        yield
    except RuntimeError as error:
        if not _is_device_failure(error):
            raise
        # Further lines are hints to who debugs kernels.
        raise RunError(f"the device failed ({str(error).splitlines()[0]}); {advice}") from error


def _is_device_failure(error: RuntimeError) -> bool:
    accelerator = getattr(torch, "AcceleratorError", ())
    return isinstance(error, accelerator) or _FAILED.match(str(error)) is not None
