"""Both sketches of every adapted matrix's gradient, from the backward passes of two adapters that change nothing.

An adapter with A = Ω and B = 0 leaves the model as it is, and its gradient is dB = s·G·Ωᵀ. One with A = 0 and B = Ψᵀ
does too, and dA = s·Ψ·G. So a pack of these two gives both sketches, of all matrices, in the passes of one training
step; over batches they are added, for sketches are linear. Along a warm-up the trained A and B stand before them, in
the same factors: the model is what it became, and the further rows and columns sketch its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.lora.attach import State, attached, factor_names
from rankwise.lora.packed import generator_for
from rankwise.records import Trial
from rankwise.spectrum.adapter import Svd
from rankwise.spectrum.sketch import co_range_size, reconstructed
from rankwise.tasks.task import Task
from rankwise.train.loop import backward, checkpointed_activations
from rankwise.train.settings import TrainingSettings


@dataclass(frozen=True)
class Warmed:
    """A trial, and what it trained so far."""

    trial: Trial
    state: State


@dataclass(frozen=True)
class RandomMatrices:
    """Ω (k, d_in) and Ψ (l, d_out) of each module: Gaussian, from the seed and the module's name."""

    k: int
    omega: Mapping[str, Float32[Tensor, "k inputs"]]
    psi: Mapping[str, Float32[Tensor, "l outputs"]]

    @classmethod
    def drawn(cls, targets: Sequence[LinearLayer], k: int, seed: int) -> RandomMatrices:
        def gaussian(what: str, target: LinearLayer, rows: int, size: int) -> Tensor:
            drawn: Tensor = torch.randn(rows, size, generator=generator_for(seed, f"{what} {target.name}"))
            return drawn / math.sqrt(size)  # of norm 1, about, as activations like it in half precision

        return cls(
            k,
            {target.name: gaussian("omega", target, k, target.d_in) for target in targets},
            {target.name: gaussian("psi", target, co_range_size(k), target.d_out) for target in targets},
        )


def sketched_gradients(
    base: BaseModel,
    task: Task,
    targets: Sequence[LinearLayer],
    warmed: Warmed,
    matrices: RandomMatrices,
    halves: Sequence[Sequence[np.ndarray]],
    settings: TrainingSettings,
    *,
    packed: bool,
) -> list[dict[str, Svd]]:
    """Of each half, the gradient of every adapted matrix by its name: the mean of those of the half's batches of rows.

    `packed` says that both sketches may come from the same passes.
    """
    adapters = [_range_adapter(warmed, matrices, targets), _co_range_adapter(warmed, matrices, targets)]
    together = [adapters] if packed else [[adapter] for adapter in adapters]

    def of(half: Sequence[np.ndarray]) -> dict[str, Svd]:
        ranged, co_ranged = (
            grads for pack in together for grads in _gradients(base, task, targets, pack, half, settings)
        )
        own, scaling = warmed.trial.rank, warmed.trial.scaling
        return {
            target.name: reconstructed(
                ranged[f"{target.name}.lora_B.weight"][:, own:] / scaling,
                co_ranged[f"{target.name}.lora_A.weight"][own:] / scaling,
                matrices.psi[target.name],
            )
            for target in targets
        }

    return [of(half) for half in halves]


def _range_adapter(warmed: Warmed, matrices: RandomMatrices, targets: Sequence[LinearLayer]) -> Warmed:
    zeros = {target.name: torch.zeros(target.d_out, matrices.k) for target in targets}
    return _extended(warmed, matrices.omega, zeros)


def _co_range_adapter(warmed: Warmed, matrices: RandomMatrices, targets: Sequence[LinearLayer]) -> Warmed:
    rows = co_range_size(matrices.k)
    zeros = {target.name: torch.zeros(rows, target.d_in) for target in targets}
    return _extended(warmed, zeros, {name: psi.T for name, psi in matrices.psi.items()})


def _extended(warmed: Warmed, further_a: Mapping[str, Tensor], further_b: Mapping[str, Tensor]) -> Warmed:
    """The warmed trial with further rows of A and columns of B, and with the scaling it has."""
    state = dict(warmed.state)
    for name, rows in further_a.items():
        a, b = factor_names(name)
        state |= {a: torch.cat([state[a], rows]), b: torch.cat([state[b], further_b[name]], dim=1)}
        rank = len(state[a])
    trial = warmed.trial
    return Warmed(Trial(rank, trial.scaling * rank, False, trial.learning_rate, trial.seed), state)


def _gradients(
    base: BaseModel,
    task: Task,
    targets: Sequence[LinearLayer],
    adapters: Sequence[Warmed],
    half: Sequence[np.ndarray],
    settings: TrainingSettings,
) -> list[State]:
    """Each adapter's mean gradient over the batches of a half, by PEFT's names; adapters are ordered by rank."""
    trials = [adapter.trial for adapter in adapters]
    with attached(base, trials, targets) as pack, checkpointed_activations(base, settings):
        for index, adapter in enumerate(adapters):
            pack.load(index, adapter.state)
        # Added up here: in the base model's dtype many small gradients would be lost.
        sums = [torch.zeros_like(row) for row in pack.rows]
        for rows in half:
            backward(base, task, [np.tile(rows, (len(trials), 1))])
            for whole, grad in zip(sums, pack.take_grads(), strict=True):
                whole.add_(grad, alpha=1 / len(half))
        return [pack.named(index, whole.cpu()) for index, whole in enumerate(sums)]
