"""The tracker against plain arithmetic: what is live when, and what for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.memory.trace import Storage, StorageTracker, Trace, on_the_line


def test_a_storage_lives_as_long_as_a_tensor_or_a_view_of_it() -> None:
    with StorageTracker() as tracker:
        held = torch.zeros(100)
        view = held[10:]
        del held
        other = torch.zeros(50)
        del view, other
        torch.zeros(10)
    assert [storage.nbytes for storage in tracker.trace.storages] == [400, 200, 40]
    assert tracker.trace.events == [0, 1, ~0, ~1, 2, ~2] or tracker.trace.events == [0, 1, ~1, ~0, 2, ~2]
    assert tracker.trace.peak().bytes == 600


def test_what_works_in_place_allocates_nothing() -> None:
    tensor = torch.zeros(100)
    tracker = StorageTracker()
    tracker.claim([tensor], "base_weights")
    with tracker:
        tensor.add_(1).view(10, 10).t_()
    assert tracker.trace.events == [0]


def test_kinds_follow_the_phase_and_what_is_claimed() -> None:
    weight = torch.ones(8, 8, requires_grad=True)
    tracker = StorageTracker()
    tracker.claim([weight], "adapter_weights")
    with tracker:
        with tracker.phase("forward"):
            loss = (weight @ weight).sum()
        with tracker.phase("backward"):
            loss.backward()
    assert weight.grad is not None
    tracker.claim([weight.grad], "gradients")
    kinds = [storage.kind for storage in tracker.trace.storages]
    assert kinds[0] == "adapter_weights"
    assert kinds.count("gradients") == 1
    assert kinds[1:3] == ["activations", "activations"]
    assert "temporaries" in kinds


def test_what_a_backward_pass_computes_again_is_an_activation() -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        return x.sin().cos()

    x = torch.ones(1000, requires_grad=True)
    tracker = StorageTracker()
    with tracker:
        with tracker.phase("forward"):
            loss = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False).sum()
        before = len(tracker.trace.storages)
        with tracker.phase("backward"):
            loss.backward()
    again = [storage.nbytes for storage in tracker.trace.storages[before:] if storage.kind == "activations"]
    assert again.count(4000) == 1  # sin(x); cos is not needed


events = st.lists(st.tuples(st.integers(0, 5000), st.booleans()), min_size=1, max_size=60)


@given(events)
def test_the_peak_is_the_largest_sum_of_what_is_live(steps: list[tuple[int, bool]]) -> None:
    trace, live, sums = Trace(), [], [0]
    for nbytes, dies in steps:
        trace.storages.append(Storage(nbytes, "activations", ""))
        index = len(trace.storages) - 1
        trace.events.append(index)
        live.append(index)
        sums.append(sum(trace.storages[one].nbytes for one in live))
        if dies:
            trace.events.append(~live.pop(0))
    assert trace.peak().bytes == max(sums)
    assert trace.peak(lambda nbytes: 2 * nbytes + 1).bytes >= 2 * max(sums)


def test_an_empty_trace_has_no_peak() -> None:
    assert Trace().peak().bytes == 0


@pytest.mark.parametrize("kind", ["activations", "gradients"])
def test_rounding_counts_as_temporary(kind: str) -> None:
    trace = Trace([Storage(100, kind, "")], [0])  # type: ignore[arg-type]
    peak = trace.peak(lambda nbytes: 512)
    assert peak.bytes_by_kind[kind] == 100  # type: ignore[index]
    assert peak.bytes_by_kind["temporaries"] == 412


@pytest.mark.parametrize(
    ("second", "at"),
    [
        (Trace([Storage(130, "activations", "")], [0, ~0]), 3),  # does not run alike
        (Trace([Storage(101, "activations", "")], [0]), 2),  # half a byte
        (Trace([Storage(50, "activations", "")], [0]), 5),  # nothing is left
    ],
)
def test_no_line_leads_to_a_step_that_cannot_be(second: Trace, at: int) -> None:
    first = Trace([Storage(100, "activations", "")], [0])
    assert on_the_line(1, first, 3, second, at) is None


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), max_size=20), st.integers(0, 5))
def test_a_repeated_step_holds_what_was_there_before_it_and_its_workspaces(
    born: list[tuple[int, bool, bool]], before: int
) -> None:
    """Of storages some die in the step, some are left by it, some are workspaces; before it others were there."""
    trace = Trace([Storage(100, "base_weights", "")] * before, list(range(before)), begins=before)
    for nbytes, dies, is_workspace in born:
        trace.storages.append(Storage(nbytes, "temporaries", ""))
        trace.events.append(len(trace.storages) - 1)
        if is_workspace:
            trace.workspaces.append(len(trace.storages) - 1)
        elif dies:
            trace.events.append(~(len(trace.storages) - 1))
    events = trace.repeated().events
    live: set[int] = set()
    for number, event in enumerate(events):
        if event < 0:
            live.remove(~event)
        else:
            assert event not in live
            live.add(event)
        if number == len(trace.events) - 1:
            after_one = set(live)
    if events:
        assert live == after_one  # a third step would find what the second found
    assert live >= {*range(before), *trace.workspaces}
    workspaces = sum(trace.storages[index].nbytes for index in trace.workspaces)
    assert trace.peak().bytes <= trace.repeated().peak().bytes <= trace.peak().bytes + workspaces


def test_each_thread_that_multiplies_has_a_workspace_from_its_first_product_on() -> None:
    weight = torch.ones(8, 8, requires_grad=True)
    tracker = StorageTracker(workspace_bytes=1000)
    tracker.claim([weight], "adapter_weights")
    with tracker:
        with tracker.phase("forward"):
            scaled = weight * 2
            loss = (scaled @ (scaled @ scaled)).sum()
        with tracker.phase("backward"):
            loss.backward()
        with tracker.phase("update"), torch.no_grad():
            weight @ weight
    trace = tracker.so_far()
    assert len(trace.workspaces) == 2
    first, second = trace.workspaces
    assert trace.events.index(first) == 2  # after the weight and its double
    assert trace.storages[first].nbytes == trace.storages[second].nbytes == 1000
    assert not {~first, ~second} & set(trace.events)
    smaller = trace.with_workspaces(10)
    assert trace.peak().bytes - smaller.peak().bytes == 2 * 990
