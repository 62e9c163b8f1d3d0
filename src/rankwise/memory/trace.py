"""Follow every storage that a training step allocates: when it is born, when it dies, what it is for.

The tracker is a dispatch mode, so it sees what kernels return, on fake tensors as on real ones; what a
kernel allocates for itself while it runs it does not see.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Kind: TypeAlias = Literal[
    "base_weights", "adapter_weights", "gradients", "optimizer_states", "activations", "temporaries"
]
KINDS: tuple[Kind, ...] = (
    "base_weights",
    "adapter_weights",
    "gradients",
    "optimizer_states",
    "activations",
    "temporaries",
)
_MATRIX_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}
_MODEL_CODE = ("/transformers/models/", "/transformers/loss/", "/transformers_modules/")


@dataclass
class Storage:
    """One storage of `nbytes`, the line of the model's code that asked for it, and the shape of its first tensor."""

    nbytes: int
    kind: Kind
    place: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Peak:
    """The most bytes that were live at once, by kind, and where in the model's code that was."""

    bytes_by_kind: dict[Kind, int]
    place: str

    @property
    def bytes(self) -> int:
        return sum(self.bytes_by_kind.values())


@dataclass
class Trace:
    """Storages, and the order in which they came and went: `i` is the birth of storage i, `~i` its death.

    The step itself is the events from `begins` on. `workspaces` are the storages that cuBLAS keeps from its first
    product on, one for each thread that multiplies.
    """

    storages: list[Storage] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    begins: int = 0
    workspaces: list[int] = field(default_factory=list)

    @property
    def dimensions(self) -> set[int]:
        """All dimensions of all tensors."""
        return {size for storage in self.storages for size in storage.shape}

    def at_rank(self, rank: int, traced: int) -> Trace:
        """The same step at another rank than the `traced` one, a prime that divides no dimension but the adapters'.

        >>> Trace([Storage(700, "activations", "", (100, 7))], [0]).at_rank(16, traced=7).storages[0].nbytes
        1600
        """
        storages = [
            replace(storage, nbytes=storage.nbytes * rank // traced)
            if storage.kind != "base_weights" and any(size % traced == 0 for size in storage.shape)
            else storage
            for storage in self.storages
        ]
        return replace(self, storages=storages)

    def with_workspaces(self, nbytes: int) -> Trace:
        """The same step where a workspace takes so many bytes."""
        storages = [
            replace(storage, nbytes=nbytes) if index in self.workspaces else storage
            for index, storage in enumerate(self.storages)
        ]
        return replace(self, storages=storages)

    def repeated(self) -> Trace:
        """The step twice; what a first one leaves behind but its workspaces goes when the second begins.

        >>> storages = [Storage(1, "activations", ""), Storage(2, "temporaries", "")]
        >>> Trace(storages, [0, 1], 0, workspaces=[1]).repeated().events
        [0, 1, -1, 0]
        """
        step = self.events[self.begins :]
        born = {event for event in step if event >= 0}.difference(self.workspaces)
        # What lived before the step and died in it has died once.
        again = [event for event in step if event in born or ~event in born]
        left = sorted(_live_after(step) & born)
        return replace(self, events=[*self.events, *(~index for index in left), *again])

    def peak(self, rounded: Callable[[int], int] = lambda nbytes: nbytes) -> Peak:
        """The peak where an allocation of n bytes takes `rounded(n)`; the rounding counts as temporaries."""
        live = most = 0
        at = -1
        for number, event in enumerate(self.events):
            if event < 0:
                live -= rounded(self.storages[~event].nbytes)
                continue
            live += rounded(self.storages[event].nbytes)
            if live > most:
                most, at = live, number
        by_kind: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        for index in _live_after(self.events[: at + 1]):
            storage = self.storages[index]
            by_kind[storage.kind] += storage.nbytes
            by_kind["temporaries"] += rounded(storage.nbytes) - storage.nbytes
        return Peak(by_kind, self.storages[self.events[at]].place if self.events else "")


def on_the_line(first_at: int, first: Trace, second_at: int, second: Trace, at: int) -> Trace | None:
    """The trace at `at`, each storage being on the straight line through those of two traces.

    None where the two do not run alike, or a storage's line has no whole bytes there.

    >>> one, two = Trace([Storage(100, "activations", "")], [0]), Trace([Storage(130, "activations", "")], [0])
    >>> on_the_line(1, one, 2, two, 5).storages[0].nbytes
    220
    """
    if first.events != second.events:
        return None
    storages: list[Storage] = []
    for here, there in zip(first.storages, second.storages, strict=True):
        more, rest = divmod((there.nbytes - here.nbytes) * (at - first_at), second_at - first_at)
        if rest or here.nbytes + more <= 0:
            return None
        storages.append(replace(here, nbytes=here.nbytes + more))
    return replace(first, storages=storages)


def _live_after(events: Iterable[int]) -> set[int]:
    live: set[int] = set()
    for event in events:
        if event < 0:
            live.discard(~event)
        else:
            live.add(event)
    return live


class StorageTracker(TorchDispatchMode):
    """Records a `Trace` of what is allocated while it is active.

    In the `forward` phase, and where a backward pass recomputes the forward, what is allocated counts
    as activations; in the others as temporaries. `claim` says otherwise of tensors that are known.
    With `workspace_bytes` the first matrix product of the forward, whose thread is the caller's, and that of the
    backward pass, whose thread is autograd's, allocate so many for good, as cuBLAS does.
    """

    def __init__(self, workspace_bytes: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._workspace_bytes = workspace_bytes
        self._multiplied: set[str] = set()
        self.trace = Trace()
        self._phase: Literal["forward", "backward", "update"] = "forward"
        self._index: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        # The place of a backward operation is that of the forward operation whose gradient it computes.
        self._places: dict[int, str] = {}

    @contextmanager
    def phase(self, phase: Literal["forward", "backward", "update"]) -> Iterator[None]:
        before, self._phase = self._phase, phase
        yield
        self._phase = before

    def so_far(self) -> Trace:
        """The trace without what still is to die, such as the model itself."""
        return replace(self.trace, events=[*self.trace.events])

    def claim(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """Say what these tensors' storages are for; those not seen before are born now."""
        for tensor in tensors:
            self._see(tensor, kind, "")
            index = self._index.get(tensor.untyped_storage()._cdata)
            if index is not None:
                self.trace.storages[index].kind = kind

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._workspace_bytes and self._phase != "update" and func._overloadpacket in _MATRIX_PRODUCTS:
            self._see_workspace()
        returned = func(*args, **(kwargs or {}))
        place: str | None = None
        for leaf in tree_iter(returned):
            if isinstance(leaf, Tensor):
                if place is None:
                    place = self._place()
                recomputed = self._phase == "backward" and torch.is_grad_enabled()
                kind: Kind = "activations" if self._phase == "forward" or recomputed else "temporaries"
                self._see(leaf, kind, place)
        return returned

    def _see(self, tensor: Tensor, kind: Kind, place: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._index or storage.nbytes() == 0:
            return
        index = len(self.trace.storages)
        self.trace.storages.append(Storage(storage.nbytes(), kind, place, tuple(tensor.shape)))
        self.trace.events.append(index)
        self._index[key] = index
        self._watched[key] = weakref.ref(storage, lambda _: self._died(key))

    def _see_workspace(self) -> None:
        if self._phase not in self._multiplied:
            self._multiplied.add(self._phase)
            index = len(self.trace.storages)
            self.trace.storages.append(Storage(self._workspace_bytes, "temporaries", "the workspace of cuBLAS"))
            self.trace.workspaces.append(index)
            self.trace.events.append(index)

    def _died(self, key: int) -> None:
        del self._watched[key]
        self.trace.events.append(~self._index.pop(key))

    def _place(self) -> str:
        if self._phase == "update":
            return "the optimiser's step"
        node = torch._C._current_autograd_node() if self._phase == "backward" else None
        if node is not None and not torch.is_grad_enabled():
            place = self._places.get(node._sequence_nr(), "")
            return f"the backward pass of {place}" if place else "the backward pass"
        place = _line_of_the_model(sys._getframe(2))
        # The operation's node has just been made: it has the number before the next.
        self._places[torch.autograd._get_sequence_nr() - 1] = place  # type: ignore[attr-defined]
        return place


def _line_of_the_model(frame: FrameType | None) -> str:
    while frame is not None:
        code = frame.f_code
        if any(part in code.co_filename for part in _MODEL_CODE):
            return f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} ({code.co_qualname})"
        frame = frame.f_back
    return ""
