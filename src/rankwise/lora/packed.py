"""One frozen linear layer under K adapters of any ranks: the packed LoRA layer.

A pack's activations carry the trials along the batch axis, trial-major: rows `k·M … (k+1)·M` belong
to trial k. The frozen product is then one matrix product for all trials. The adapters' products are
batched over *parts* of the pack, neighbouring trials whose A and B come with equally many rows.

Nothing here mixes trials: row block k of the output depends on row block k of the input and on
trial k's A and B alone. That is what isolates a diverged trial from the others.

A and B come in the dtype of the activations, with the scaling in A, so that it costs no pass over the activations.
Both come with the rank as their second axis: B transposed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from rankwise.lora.frozen import FrozenLinear


def initial_a(seed: int, name: str, rank: int, d_in: int) -> Float32[Tensor, "rank d_in"]:
    """A's initial rows for one module: Kaiming-uniform with a = sqrt(5), the bound is 1/sqrt(d_in).

    The same distribution as PEFT's default. Rows are drawn one after another from a CPU generator
    seeded by (seed, name), so rank r has the first r rows of any larger rank.
    """
    bound = 1 / math.sqrt(d_in)
    return torch.empty(rank, d_in).uniform_(-bound, bound, generator=generator_for(seed, name))


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on (seed, name) alone, whatever the platform."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


class _PackedLoraFunction(torch.autograd.Function):
    """y = x·Wᵀ + b + (x·Aᵀ)·Bᵀ for every trial, saving x once and the rank-sized products.

    Written out by hand because autograd would keep the base output and the adapter's output apart and
    add them in a further pass, in the forward and in the backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "rows d_in"],
        frozen: FrozenLinear,
        parts: Sequence[slice],
        *factors: Float[Tensor, "_ _ _"],
    ) -> Float[Tensor, "rows d_out"]:
        trials = parts[-1].stop
        y: Tensor = frozen(x)
        x_by_trial, y_by_trial = x.view(trials, -1, x.shape[-1]), y.view(trials, -1, y.shape[-1])
        hidden = []
        for part, a, b in zip(parts, factors[::2], factors[1::2], strict=True):
            h = torch.bmm(x_by_trial[part], a.transpose(1, 2))
            y_by_trial[part].baddbmm_(h, b)
            hidden.append(h)
        ctx.parts = parts
        ctx.frozen = frozen
        ctx.save_for_backward(x, *hidden, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_y,) = grads
        parts: Sequence[slice] = ctx.parts
        x, *rest = ctx.saved_tensors
        hidden, factors = rest[: len(parts)], rest[len(parts) :]
        trials = parts[-1].stop
        grad_y = grad_y.contiguous()
        grad_x = ctx.frozen.input_gradients(grad_y) if ctx.needs_input_grad[0] else None
        x_by_trial, dy_by_trial = x.view(trials, -1, x.shape[-1]), grad_y.view(trials, -1, grad_y.shape[-1])
        grad_factors: list[Tensor] = []
        for part, h, a, b in zip(parts, hidden, factors[::2], factors[1::2], strict=True):
            grad_h = torch.bmm(dy_by_trial[part], b.transpose(1, 2))
            if grad_x is not None:
                grad_x.view(x_by_trial.shape)[part].baddbmm_(grad_h, a)
            grad_factors.append(torch.bmm(grad_h.transpose(1, 2), x_by_trial[part]))
            grad_factors.append(torch.bmm(h.transpose(1, 2), dy_by_trial[part]))
        return grad_x, None, None, *grad_factors


class PackedLora(nn.Module):
    """A frozen linear layer (nn.Linear or transformers' Conv1D) with a pack's adapters on it.

    `factors` holds A (trials, rank, d_in) and Bᵀ (trials, rank, d_out) of each of the `parts` in turn.
    """

    def __init__(self, base: FrozenLinear, parts: Sequence[slice], factors: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.base = base
        self.parts = parts
        self.factors = nn.ParameterList(factors)

    # Some layers around read the weight, to hand it to a kernel where they have one.
    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.base.layer.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", self.base.layer.bias)

    @property
    def trials(self) -> int:
        stop: int = self.parts[-1].stop
        return stop

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        flat = x.reshape(-1, x.shape[-1])
        y: Tensor = _PackedLoraFunction.apply(  # type: ignore[no-untyped-call]
            flat, self.base, self.parts, *self.factors
        )
        return y.view(*x.shape[:-1], -1)


class PackedLinear(nn.Module):
    """A linear layer trained in full, one copy a trial: PEFT's `modules_to_save`. Computes in float32."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Of shape (trials, d_out, d_in) and (trials, d_out)."""
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float32[Tensor, "*batch d_out"]:
        by_trial = x.reshape(len(self.weight), -1, x.shape[-1]).float()
        y = torch.bmm(by_trial, self.weight.transpose(1, 2))
        if self.bias is not None:
            y = y + self.bias.unsqueeze(1)
        return y.view(*x.shape[:-1], -1)
