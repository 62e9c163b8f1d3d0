"""What makes every test quicker and changes none."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# No test depends on how fast a machine is.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# Tiny models are faster on one thread, on a busy machine by far.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # What is imported by now is no garbage to look for.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _a_library_is_read_once() -> Iterator[None]:
    """Reading Python's own takes seconds, and it does not change meanwhile."""
    from rankwise.tasks import library  # not before pytest has put its checks of shapes around it

    read = functools.cache(lambda root, read_anew=library.read_functions: tuple(read_anew(root)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(library, "read_functions", lambda root: iter(read(root)))
        yield
