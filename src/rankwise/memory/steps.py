"""The training steps of a model on fake tensors, each of them followed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from rankwise.base.shapes import match_targets
from rankwise.memory.build import adapt, give_storage, meta_step_model
from rankwise.memory.cuda import LARGER_WORKSPACE_BYTES, WORKSPACE_BYTES, reserved_bytes, rounded
from rankwise.memory.settings import StepSettings
from rankwise.memory.simulate import fake_tensors, trace_step
from rankwise.memory.trace import Trace, on_the_line
from rankwise.records import MemoryParts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31)


@dataclass(frozen=True)
class SimulatedPeak:
    """What is allocated at the peak, by its parts and at the line `place`, and what the allocator reserves for it.

    `most_bytes` is reserved where cuBLAS takes the larger workspaces.
    """

    memory: MemoryParts
    reserved_bytes: int
    most_bytes: int
    place: str


class Steps:
    """The steps of a model with adapters on `targets`, or trained in full.

    Not every step is followed: one of full fine-tuning and one of a single rank tell of all ranks, and steps of two
    batches tell of all batches. `experts`: PEFT adapts parameters of a mixture of experts. With a `pack_size`
    so many adapters are trained together.
    """

    def __init__(
        self, config: PreTrainedConfig, targets: str | Sequence[str], pack_size: int, *, experts: bool
    ) -> None:
        self.config = config
        self.targets = targets
        self.pack_size = pack_size
        self.experts = experts
        self._traces: dict[tuple[int | None, StepSettings], Trace] = {}

    def model(self, rank: int | None, settings: StepSettings) -> nn.Module:
        """The model that a step trains, on the meta device."""
        model = meta_step_model(self.config, settings)
        return model.requires_grad_(True) if rank is None else adapt(model, rank, self.targets, settings)

    def peak(self, rank: int | None, settings: StepSettings, workspace_bytes: int | None = None) -> SimulatedPeak:
        """Of a step of PEFT's adapter, of a pack, or of full fine-tuning (None).

        `workspace_bytes` are what cuBLAS keeps for a thread, None what it keeps on most devices.

        Raises `Unsimulated` where the model's code asks for the values of its tensors.
        """
        workspace_bytes = WORKSPACE_BYTES if workspace_bytes is None else workspace_bytes
        trace = self._trace(rank, settings).with_workspaces(workspace_bytes).repeated()
        peak = trace.peak(rounded)
        of = peak.bytes_by_kind
        memory = MemoryParts(
            base_weights=of["base_weights"] + (of["adapter_weights"] if rank is None else 0),
            adapter_weights=0 if rank is None else of["adapter_weights"],
            gradients=of["gradients"],
            optimizer_states=of["optimizer_states"],
            activations=of["activations"],
            overhead=of["temporaries"],
        )
        most = reserved_bytes(trace.with_workspaces(LARGER_WORKSPACE_BYTES))
        return SimulatedPeak(memory, reserved_bytes(trace), most, peak.place)

    def _trace(self, rank: int | None, settings: StepSettings) -> Trace:
        known = self._traces.get((rank, settings))
        if known is None:
            known = (
                self._between_batches(rank, settings)
                or self._of_another_rank(rank, settings)
                or self._followed(rank, settings)
            )
            self._traces[rank, settings] = known
        return known

    def _between_batches(self, rank: int | None, settings: StepSettings) -> Trace | None:
        """From two known steps that differ from this one in the batch alone."""
        # One row alone is not padded, and a chunked loss comes in chunks.
        if settings.batch_size == 1 or settings.loss == "chunked":
            return None
        known = {
            other.batch_size: trace
            for (of_rank, other), trace in self._traces.items()
            if of_rank == rank and other.batch_size > 1 and replace(other, batch_size=settings.batch_size) == settings
        }
        if len(known) < 2:
            return None
        (first_at, first), (second_at, second), *_ = known.items()
        return on_the_line(first_at, first, second_at, second, settings.batch_size)

    def _of_another_rank(self, rank: int | None, settings: StepSettings) -> Trace | None:
        """From the step of a rank that is told from all other dimensions, as full fine-tuning shows them."""
        full = self._traces.get((None, replace(settings, quantize="none")))
        # A dimension of 1 may be laid out otherwise, 8-bit states come in blocks, and packs do not train in full.
        if rank is None or rank == 1 or full is None or settings.optimizer == "adamw-8bit" or self.pack_size:
            return None
        sizes = full.dimensions
        told = next((prime for prime in _PRIMES if all(size % prime for size in sizes)), None)
        if told is None:
            return None
        if (told, settings) not in self._traces:
            self._traces[told, settings] = self._followed(told, settings)
        return self._traces[told, settings].at_rank(rank, told)

    def _followed(self, rank: int | None, settings: StepSettings) -> Trace:
        if rank is not None and self.pack_size:
            # It brings the training loop and what that reads data with, which takes a second to import.
            from rankwise.memory.pack import pack_of, simulate_pack

            base, trials, training = pack_of(self.config, rank, self.pack_size, settings)
            targets = match_targets(base.model, self.targets, trained=base.trained_modules)
            return simulate_pack(base, trials, targets, training, settings.seq_len, cuda=True)
        # On experts PEFT turns autocast off by the name of the device, which torch does not know for meta.
        meta = not settings.autocast and not self.experts
        model = self.model(rank, settings)
        with fake_tensors(cuda=True, meta=meta) as device:
            give_storage(model, device)
            return trace_step(model, settings, device, workspace_bytes=WORKSPACE_BYTES)
