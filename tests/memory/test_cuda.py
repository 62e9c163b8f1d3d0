"""The model of CUDA's caching allocator: its rules by example, and what holds for every trace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.memory.cuda import reserved_bytes, rounded
from rankwise.memory.trace import Storage, Trace

MIB = 2**20


def trace_of(*steps: int | str) -> Trace:
    """A number allocates that many bytes; a text frees the allocation of that index."""
    trace = Trace()
    for step in steps:
        if isinstance(step, str):
            trace.events.append(~int(step))
        else:
            trace.storages.append(Storage(step, "activations", ""))
            trace.events.append(len(trace.storages) - 1)
    return trace


@pytest.mark.parametrize(
    ("steps", "reserved"),
    [
        ([1], 2 * MIB),  # a small one takes a segment of 2 MiB
        ([1, 1, MIB], 2 * MIB),  # which others share
        ([MIB, MIB, 1], 4 * MIB),
        ([MIB + 1], 20 * MIB),  # one of up to 10 MiB a segment of 20
        ([MIB + 1, 9 * MIB, 9 * MIB], 20 * MIB),
        ([10 * MIB], 10 * MIB),  # a larger one a segment of its own, in steps of 2 MiB
        ([11 * MIB], 12 * MIB),
        ([30 * MIB, "0", 12 * MIB, 18 * MIB], 30 * MIB),  # what is free is split
        ([30 * MIB, "0", 12 * MIB, 19 * MIB], 50 * MIB),
        ([12 * MIB, 18 * MIB, "0", "1", 30 * MIB], 60 * MIB),  # segments are not joined
        ([30 * MIB, "0", 12 * MIB, 18 * MIB, "1", "2", 30 * MIB], 30 * MIB),  # the parts of one are
        ([20 * MIB, 14 * MIB, "0", "1", 14 * MIB, 20 * MIB], 34 * MIB),  # the best fit is taken
    ],
)
def test_segments_are_those_of_the_allocator(steps: list[int | str], reserved: int) -> None:
    assert reserved_bytes(trace_of(*steps)) == reserved


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.integers(0, 3)), min_size=1, max_size=80))
def test_what_is_reserved_covers_the_peak_and_is_whole_segments(steps: list[tuple[int, int]]) -> None:
    trace, live = Trace(), []
    for nbytes, deaths in steps:
        trace.storages.append(Storage(nbytes, "activations", ""))
        trace.events.append(len(trace.storages) - 1)
        live.append(len(trace.storages) - 1)
        for _ in range(min(deaths, len(live))):
            trace.events.append(~live.pop(nbytes % len(live)))
    reserved = reserved_bytes(trace)
    assert reserved >= trace.peak(rounded).bytes
    assert reserved % (2 * MIB) == 0


def test_sizes_are_rounded_to_512_bytes() -> None:
    assert [rounded(1), rounded(512), rounded(513)] == [512, 512, 1024]
