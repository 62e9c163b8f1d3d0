"""What a CUDA device does with memory that a CPU does not: its allocator and its attention kernels.

Fake CUDA tensors need a CUDA build of torch, so a step is simulated on fake CPU tensors and this
module stands in where the two differ.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from rankwise.memory.trace import Trace

# What cuBLAS keeps for a thread that multiplies: 2 buffers of 4 MiB and 8 of 16 KiB; four times as much on Hopper and
# Blackwell. Source: `parseChosenWorkspaceSize` in torch's CUDABlas.cpp.
WORKSPACE_BYTES = (2 * 4096 + 8 * 16) * 1024
LARGER_WORKSPACE_BYTES = 8 * 4096 * 1024

_CPU_ATTENTION, _CPU_DROPOUT = functional.scaled_dot_product_attention, functional.dropout
_CPU_LAYER_NORM, _CPU_SOFTMAX, _CPU_POW = functional.layer_norm, functional.softmax, torch.pow
_MIB = 1 << 20
_SMALL = _MIB
_SMALL_SEGMENT = 2 * _MIB
_MEDIUM = 10 * _MIB
_MEDIUM_SEGMENT = 20 * _MIB


def workspace_bytes(device: torch.device) -> int:
    """A thread's workspace on this device."""
    major, _ = torch.cuda.get_device_capability(device)
    return LARGER_WORKSPACE_BYTES if major in (9, 10) else WORKSPACE_BYTES


def rounded(nbytes: int) -> int:
    """What the caching allocator counts for an allocation: a multiple of 512 bytes."""
    return -(-nbytes // 512) * 512


@dataclass(eq=False)
class _Block:
    size: int
    address: int
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None


class _Pool:
    """The segments for small or for large allocations: best fit, split and merged."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.reserved = 0
        # Of blocks of one size the allocator takes that of the lowest address.
        self._free: list[tuple[int, int, _Block]] = []

    def allocate(self, size: int) -> _Block:
        at = bisect.bisect_left(self._free, (size,))
        block = self._free.pop(at)[2] if at < len(self._free) else self._segment(size)
        block.free = False
        rest = block.size - size
        if rest >= 512 if self.small else rest > _SMALL:
            tail = _Block(rest, block.address + size, before=block, after=block.after)
            if block.after is not None:
                block.after.before = tail
            block.size, block.after = size, tail
            self._put(tail)
        return block

    def release(self, block: _Block) -> None:
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._take(neighbour)
                first, second = (neighbour, block) if neighbour is block.before else (block, neighbour)
                first.size += second.size
                first.after = second.after
                if second.after is not None:
                    second.after.before = first
                block = first
        self._put(block)

    def _segment(self, size: int) -> _Block:
        if self.small:
            total = _SMALL_SEGMENT
        elif size < _MEDIUM:
            total = _MEDIUM_SEGMENT
        else:
            total = -(-size // _SMALL_SEGMENT) * _SMALL_SEGMENT
        segment = _Block(total, address=self.reserved)
        self.reserved += total
        return segment

    def _put(self, block: _Block) -> None:
        block.free = True
        bisect.insort(self._free, (block.size, block.address, block))

    def _take(self, block: _Block) -> None:
        del self._free[bisect.bisect_left(self._free, (block.size, block.address))]


def reserved_bytes(trace: Trace) -> int:
    """What the caching allocator takes from the device for this trace: its segments, with the gaps in them.

    Nothing is given back, as on a device with room; one that is full would first return empty
    segments. Source: `DeviceCachingAllocator::malloc` in torch's CUDACachingAllocator.cpp.
    """
    pools = {True: _Pool(small=True), False: _Pool(small=False)}
    blocks: dict[int, tuple[_Pool, _Block]] = {}
    for event in trace.events:
        if event < 0:
            pool, block = blocks.pop(~event)
            pool.release(block)
        else:
            size = rounded(trace.storages[event].nbytes)
            pool = pools[size <= _SMALL]
            blocks[event] = pool, pool.allocate(size)
    return sum(pool.reserved for pool in pools.values())


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Within the `with` block attention, dropout and what autocast computes in float32 allocate as on CUDA.

    Attention without a mask is FlashAttention, which does not repeat the keys and values of grouped queries. With one
    it is the memory-efficient kernel, which holds the mask as a bias; models repeat keys and values for it.
    Dropout keeps a byte an element, where a CPU keeps the noise in the input's dtype. CUDA's autocast computes layer
    norms, softmaxes and powers in float32, a CPU's leaves them as they come. Source: `AT_FORALL_FP32` in torch's
    autocast_mode.h; sums and what models seldom call are left as they are.
    """
    # A torch function mode would not reach the forward that a checkpointed backward runs again.
    functional.scaled_dot_product_attention, functional.dropout = _attend, _dropout
    functional.layer_norm, functional.softmax, torch.pow = _layer_norm, _softmax, cast(Any, _pow)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, functional.dropout = _CPU_ATTENTION, _CPU_DROPOUT
        functional.layer_norm, functional.softmax, torch.pow = _CPU_LAYER_NORM, _CPU_SOFTMAX, _CPU_POW


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not 0 < p < 1:
        return _CPU_DROPOUT(input, p, training, inplace)
    return torch.native_dropout(input, p, training)[0]


def _is_raised(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16) and torch.is_autocast_enabled("cpu")


def _raised(tensor: Tensor) -> Tensor:
    return tensor.float() if _is_raised(tensor) else tensor


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    weight, bias = (None if each is None else _raised(each) for each in (weight, bias))
    return _CPU_LAYER_NORM(_raised(input), cast(Any, normalized_shape), weight, bias, eps)


def _softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    if dtype is None and _is_raised(input):
        dtype = torch.float32  # the kernel reads the input as it is
    return _CPU_SOFTMAX(input, dim, _stacklevel, dtype)


def _pow(input: Any, exponent: Any, **options: Any) -> Tensor:
    return _CPU_POW(_raised(input) if isinstance(input, Tensor) else input, exponent, **options)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    # Source of the choice: `use_flash_attention` and `use_mem_efficient_attention` in torch's sdp_utils.cpp.
    half = query.dtype in (torch.bfloat16, torch.float16)
    width = query.shape[-1]
    if attn_mask is None and half and width <= 256 and value.shape[-1] == width:
        out: Tensor = _Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
        return out
    if not enable_gqa or query.shape[1] == key.shape[1]:
        bias = None if attn_mask is None else _bias(attn_mask, query)
        out = _MemoryEfficient.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
        return out
    with sdpa_kernel(SDPBackend.MATH):
        return _CPU_ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def _bias(mask: Tensor, query: Tensor) -> Tensor:
    """A mask as the kernel wants it: of the query's dtype, rows padded to a multiple of 16."""
    bias = torch.zeros_like(mask, dtype=query.dtype) if mask.dtype == torch.bool else mask
    return functional.pad(bias, (0, -bias.shape[-1] % 16)) if bias.shape[-1] % 16 else bias


class _Flash(torch.autograd.Function):
    # Its output is laid out as the query is. Source: `meta__scaled_dot_product_flash_attention` in torch's
    # _meta_registrations.py, and the next class's beside it.
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        logsumexp = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, logsumexp = ctx.saved_tensors
        batch, heads, length, width = query.shape
        # Accumulated in float32 over rows padded to 128.
        accumulated = query.new_empty(batch, heads, -(-length // 128) * 128, width, dtype=torch.float32)
        delta = torch.empty_like(logsumexp)
        d_query, d_key, d_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        if heads != key.shape[1]:
            expanded = [query.new_empty(batch, key.shape[2], heads, width) for _ in (key, value)]
            del expanded
        del accumulated, delta
        return d_query, d_key, d_value


class _MemoryEfficient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        batch, heads, length, _ = query.shape
        out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        logsumexp = query.new_empty(batch, heads, -(-length // 32) * 32, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _, _, logsumexp = ctx.saved_tensors
        accumulated = query.new_empty(query.shape, dtype=torch.float32)
        delta = torch.empty_like(logsumexp)
        gradients = [tensor.new_empty(tensor.transpose(1, 2).shape).transpose(1, 2) for tensor in (query, key, value)]
        del accumulated, delta
        return *gradients, None
