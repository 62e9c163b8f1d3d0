"""What the speed benchmarks measure by: a step's time, the device's peak, the products that training must do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.base.shapes import linear_layers
from rankwise.compare.prepare import Prepared
from rankwise.lora.attach import attached
from rankwise.tasks.task import collate

Result = TypeVar("Result")
Step = Callable[[int], object]

WARM_UP = 2  # steps that are not timed


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """The function's result in a fresh process, so that contestants share no allocator, caches or settings."""
    # A pool of multiprocessing ends its process when this one is interrupted; that of concurrent.futures waits for it.
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def seconds(step: Step, device: torch.device, steps: int, warm_up: int = WARM_UP) -> float:
    """A step's mean over so many, after some that are not timed."""
    for number in range(warm_up):
        step(number)
    _wait(device)
    started = time.perf_counter()
    for number in range(steps):
        step(warm_up + number)
    _wait(device)
    return (time.perf_counter() - started) / steps


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Of a large matrix product on random numbers: the median of ten."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(13):
        _wait(device)
        started = time.perf_counter()
        left @ right
        _wait(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times[3:])


def frozen_flops(model: nn.Module) -> int:
    """Floating-point operations a token: forward and input gradient of every frozen linear layer, and of the head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return 4 * (sum(layer.weights for layer in linear_layers(model)) + head.weight.numel())


def must_do(prepared: Prepared, rank: int) -> float:
    """Floating-point operations an example of mean length: what an adapter's training cannot do without.

    The frozen layers' forward, and their input gradients but where the embeddings enter; the adapters' forward, and
    the gradients of A, of B and of what enters. Attention and the loss are left out; padding is no work.
    """
    lengths = prepared.task.train.input_ids.lengths
    row = np.abs(lengths - lengths.mean()).argmin()
    batch = collate(prepared.task.train, np.array([row]), prepared.task.pad_token_id)
    products = 0

    def count(weights: int, adapter: tuple[int, int], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal products
        d_in, d_out = adapter
        tokens = inputs[0].numel() // inputs[0].shape[-1]
        passed_on = int(inputs[0].requires_grad)
        products += 2 * tokens * (weights * (1 + passed_on) + rank * (d_in * (2 + passed_on) + d_out * 3))

    with attached(prepared.base, [prepared.config.trial(rank, 1e-3, 0)], prepared.targets):
        for target in prepared.targets:
            counted = partial(count, target.weights, (target.d_in, target.d_out))
            prepared.base.model.get_submodule(target.name).register_forward_pre_hook(counted)
        prepared.base.model(**batch.to(prepared.base.device).inputs)
    return products * float(lengths.mean()) / float(lengths[row])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
