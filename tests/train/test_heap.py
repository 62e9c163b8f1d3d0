"""That freed memory stays with the process, and can be given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from rankwise.train import heap

PROGRAM = """
import resource, torch
from rankwise.train.heap import give_back_freed_memory, keep_freed_memory
from rankwise.train.cost import _resident

def faults():
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

faults()
start = faults(); mapped = faults() - start
keep_freed_memory()
faults()
start = faults(); kept = faults() - start
held = _resident("VmRSS")
give_back_freed_memory()
print(mapped, kept, held - _resident("VmRSS"))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_block_that_is_freed_is_not_mapped_anew() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    mapped, kept, given_back = map(int, done.stdout.split())
    assert kept < mapped / 10
    assert given_back > 2**25


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Other:
        def __getattr__(self, name: str) -> object:
            asked.append(name)
            raise AttributeError(name)

    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: Other())
    heap.keep_freed_memory()
    heap.give_back_freed_memory()
    assert asked == ["mallopt", "malloc_trim"]
