"""Rank 0: the frozen base model, as it is where it is a language model, else with its head fitted to convergence.

Every gain is measured against this, and an undertrained head would inflate them all. So the frozen
part runs once over each split, and the head is fitted on those features by L-BFGS, under several weight
decays; of all iterates the one with the lowest validation loss is kept.

The head is a chain of linear layers (the modules trained in full beside an adapter) with an activation
between two of them. Which activation is found by comparing what leaves one with what enters
the next: architectures write it inline, each in its own way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from rankwise.base.model import BaseModel, without
from rankwise.errors import UserError
from rankwise.lora.attach import initial_heads
from rankwise.records import Baseline, Scores
from rankwise.tasks.task import Batch, Split, Task, collate, evaluation_rows
from rankwise.train.loop import score

_WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
_MOST_ITERATIONS = 300
_PATIENCE = 15  # iterations without a lower validation loss
_TOKENS = 16_384  # padded tokens in one forward
_ACTIVATIONS = ("linear", "tanh", "gelu", "gelu_new", "relu", "silu")
_SAME = 0.02  # the largest difference that bfloat16 leaves between an activation and itself

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BaselineScores:
    """Rank 0 on each example of the test split, (1, examples), and on validation as a whole."""

    test: Scores
    validation: Baseline


@dataclass(frozen=True)
class HeadChain:
    """The trained modules in the order they run, and the activations between them."""

    names: tuple[str, ...]
    activations: tuple[Activation, ...]


def fit_baseline(base: BaseModel, task: Task, seed: int) -> BaselineScores:
    """Fit the head on train, choose on validation, score test; a language model is scored as it is.

    Raises `UserError` where the head is not a chain of linear layers.
    """
    if base.causal:
        scores, held_out = (score(base, 1, task, split) for split in (task.test, task.validation))
        means = [float(of.mean(dtype=np.float64)) for of in (held_out.correct, held_out.nll)]
        return BaselineScores(scores, Baseline(*means))
    chain = head_chain(base, task)
    train, validation, test = (
        _features(base, chain, split, task.pad_token_id) for split in (task.train, task.validation, task.test)
    )
    labels = [torch.from_numpy(split.labels.astype(np.int64)) for split in (task.train, task.validation, task.test)]
    scale = train.std(dim=0).clamp(min=1e-6)
    train, validation, test = train / scale, validation / scale, test / scale
    head = _Head(base, chain, seed, scale)
    fits = [_fit(head, train, labels[0], validation, labels[1], decay) for decay in _WEIGHT_DECAYS]
    validation_nll, best = min(fits, key=lambda fit: fit[0])
    with torch.no_grad():
        logits = best(test)
        nll = functional.cross_entropy(logits, labels[2], reduction="none")
        accuracy = float((best(validation).argmax(dim=-1) == labels[1]).double().mean())
    predicted = logits.argmax(dim=-1)
    scores = Scores(nll.numpy()[None], (predicted == labels[2]).float().numpy()[None], predicted.int().numpy()[None])
    return BaselineScores(scores, Baseline(accuracy, validation_nll))


class _Head(nn.Module):
    """The head as a trial of this seed starts with it, for features divided by `scale` (the same function)."""

    def __init__(self, base: BaseModel, chain: HeadChain, seed: int, scale: Float32[Tensor, " features"]) -> None:
        super().__init__()
        state = initial_heads(base, seed)
        self.activations = chain.activations
        self.layers = nn.ModuleList()
        for name in chain.names:
            weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
            self.layers.append(layer)
        with torch.no_grad():
            self.weights[0].mul_(scale)

    @property
    def weights(self) -> list[Tensor]:
        return [parameter for name, parameter in self.named_parameters() if name.endswith("weight")]

    def forward(self, x: Float32[Tensor, "examples features"]) -> Float32[Tensor, "examples labels"]:
        for layer, activation in zip(self.layers, [*self.activations, ACT2FN["linear"]], strict=True):
            x = activation(layer(x))
        return x


def _fit(
    head: _Head, x: Tensor, labels: Tensor, x_validation: Tensor, labels_validation: Tensor, weight_decay: float
) -> tuple[float, _Head]:
    """The lowest validation loss on the way of L-BFGS from `head`, and the head there."""
    head = copy.deepcopy(head)
    # By default one iteration has one evaluation, none of them for its line search: an overshot step then ends the fit.
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=1, max_eval=25, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = weight_decay / 2 * torch.stack([weight.square().sum() for weight in head.weights]).sum()
        value = functional.cross_entropy(head(x), labels) + penalty
        value.backward()
        return value

    best, best_loss, since = head, float("inf"), 0
    for _ in range(_MOST_ITERATIONS):
        optimizer.step(loss)
        with torch.no_grad():
            validation = float(functional.cross_entropy(head(x_validation), labels_validation))
        since += 1
        if validation < best_loss:
            best, best_loss, since = copy.deepcopy(head), validation, 0
        if since >= _PATIENCE:
            break
    return best_loss, best


def head_chain(base: BaseModel, task: Task) -> HeadChain:
    """The trained modules in the order one forward runs them. Raises `UserError` where they are no chain."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((name, inputs[0].float(), output.float()))

    handles = [
        base.model.get_submodule(name).register_forward_hook(partial(record, name)) for name in base.trained_modules
    ]
    try:
        _logits(base, collate(task.train, np.arange(min(8, len(task.train))), task.pad_token_id))
    finally:
        for handle in handles:
            handle.remove()
    names = tuple(name for name, _, _ in calls)
    activations = [_activation(output, entering) for (_, _, output), (_, entering, _) in pairwise(calls)]
    if sorted(names) != sorted(base.trained_modules) or None in activations:
        raise UserError(
            f"the head of {base.name} ({', '.join(base.trained_modules)}) is not a chain of linear layers with "
            "activations between them: rank 0, the baseline of every comparison, cannot be fitted"
        )
    return HeadChain(names, tuple(activation for activation in activations if activation is not None))


def _activation(leaving: Tensor, entering: Tensor) -> Activation | None:
    if leaving.shape != entering.shape:
        return None
    errors = {name: float((ACT2FN[name](leaving) - entering).abs().max()) for name in _ACTIVATIONS}
    nearest = min(errors, key=lambda name: errors[name])
    return ACT2FN[nearest] if errors[nearest] < _SAME else None


def _features(
    base: BaseModel, chain: HeadChain, split: Split, pad_token_id: int
) -> Float32[Tensor, "examples features"]:
    """What enters the head, for each example, on the CPU."""
    parts: dict[int, Tensor] = {}
    with _entering_head(base, chain) as entering:
        for rows in evaluation_rows(split.input_ids.lengths, _TOKENS):
            features = entering(collate(split, rows, pad_token_id)).float().cpu()
            parts.update(zip(rows.tolist(), features, strict=True))
    return torch.stack([parts[row] for row in range(len(split))])


@contextmanager
def _entering_head(base: BaseModel, chain: HeadChain) -> Iterator[Callable[[Batch], Tensor]]:
    """A function from a batch to (batch, features).

    A decoder's single layer runs on every token and the model picks one afterwards, so with one layer
    the model is asked for its logits with that layer taken out.
    """
    if len(chain.names) == 1:
        with without(base.model, chain.names):
            yield partial(_logits, base)
        return
    seen: list[Tensor] = []
    first = base.model.get_submodule(chain.names[0])
    handle = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))

    def entering(batch: Batch) -> Tensor:
        seen.clear()
        _logits(base, batch)
        return seen[0]

    try:
        yield entering
    finally:
        handle.remove()


@torch.no_grad()
def _logits(base: BaseModel, batch: Batch) -> Tensor:
    logits: Tensor = base.model(**batch.to(base.device).inputs).logits
    return logits
