"""Put a pack's adapters on a base model, take them off again, and slice out one trial.

Everything a trial trains lies in one float32 row: all of A, a row of it for each of the rank, then B likewise
(transposed), then the heads. So a trial's gradient norm is the norm of its row, an optimiser has one parameter a
trial, a checkpoint is a few vectors, and a trial's memory is countable by eye.

Layers compute with copies that are made once a step, of A and B in the base model's dtype and with the scaling in A.
Trials of equal rank are copied into one tensor, and their products are one batched product. On a GPU that holds for
all trials, padded with zeros to the largest rank: there a further product takes longer than multiplying the zeros. On
a CPU it is the other way round. Gradients come as autograd makes them, of the copies, and are gathered into rows once
a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from rankwise.base.model import DTYPES, BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.lora.frozen import FrozenLinear, frozen_linears
from rankwise.lora.packed import PackedLinear, PackedLora, generator_for, initial_a
from rankwise.lora.positions import SharedLora, positions_told_apart, shares_positions
from rankwise.records import Trial

State = dict[str, Tensor]


@dataclass(frozen=True)
class PackGroup:
    """Neighbouring trials whose products are batched: copies of A and Bᵀ for all target layers, side by side."""

    trials: slice
    a: Float[Tensor, "trials rank inputs"]
    b: Float[Tensor, "trials rank outputs"]
    views_of_a: tuple[nn.Parameter, ...]
    views_of_b: tuple[nn.Parameter, ...]


@dataclass(frozen=True)
class Pack:
    """Trials attached to one base model. `trials` are ordered by rank: that is the order of every trial axis.

    `rows` hold each trial's parameters. The rest is what layers compute with: the copies of `groups`, and `heads`
    with its views by name.
    """

    base: BaseModel
    trials: tuple[Trial, ...]
    targets: tuple[LinearLayer, ...]
    rows: tuple[Float32[Tensor, " _"], ...]
    groups: tuple[PackGroup, ...]
    heads: Float32[Tensor, "trials params"]
    views_of_heads: Mapping[str, nn.Parameter]

    @torch.no_grad()
    def refresh(self) -> None:
        """Let the layers see the rows as they are now."""
        for index in range(len(self.trials)):
            self._refresh(index)

    def _refresh(self, index: int) -> None:
        group = next(group for group in self.groups if index < group.trials.stop)
        slot = index - group.trials.start
        a, b, heads = self._split(index, self.rows[index])
        torch.mul(a, self.trials[index].scaling, out=group.a[slot, : len(a)])
        group.b[slot, : len(b)] = b
        self.heads[index] = heads

    def take_grads(self) -> list[Tensor]:
        """Each trial's gradient since the last call, laid out as its row."""
        grads = [torch.empty_like(row) for row in self.rows]
        of_heads = _taken(self.views_of_heads.values(), self.heads)
        for group in self.groups:
            of_a, of_b = _taken(group.views_of_a, group.a), _taken(group.views_of_b, group.b)
            for slot, index in enumerate(range(*group.trials.indices(len(self.trials)))):
                a, b, heads = self._split(index, grads[index])
                a.copy_(of_a[slot, : len(a)]).mul_(self.trials[index].scaling)
                b.copy_(of_b[slot, : len(b)])
                heads.copy_(of_heads[index])
        return grads

    def named(self, index: int, row: Tensor) -> State:
        """Views of one trial's row, or of one laid out alike, by PEFT's parameter names and with their shapes."""
        a, b, heads = self._split(index, row)
        named: State = {}
        inputs = a.split([target.d_in for target in self.targets], dim=1)
        outputs = b.split([target.d_out for target in self.targets], dim=1)
        for target, of_a, of_b in zip(self.targets, inputs, outputs, strict=True):
            name_a, name_b = factor_names(target.name)
            named |= {name_a: of_a, name_b: of_b.t()}
        return named | _heads(self.base, heads)

    def state(self, index: int) -> State:
        """A copy on the CPU of what one trial trains, by PEFT's parameter names."""
        row = self.rows[index].to("cpu", copy=True)
        return {name: view.contiguous().clone() for name, view in self.named(index, row).items()}

    def load(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Overwrite one trial with a state of the same names and shapes."""
        views = self.named(index, self.rows[index])
        if set(state) != set(views):
            raise ValueError("the state's tensors are not those of this trial")
        for name, view in views.items():
            view.copy_(state[name])
        with torch.no_grad():
            self._refresh(index)

    def _split(self, index: int, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A (rank, inputs), Bᵀ (rank, outputs) and the heads (params): views."""
        rank = self.trials[index].rank
        inputs, outputs = _widths(self.targets)
        a, b, heads = row.split([rank * inputs, rank * outputs, self.heads.shape[1]])
        return a.view(rank, inputs), b.view(rank, outputs), heads


@contextmanager
def attached(
    base: BaseModel, trials: Sequence[Trial], targets: Sequence[LinearLayer], *, as_on_cuda: bool | None = None
) -> Iterator[Pack]:
    """The base model with freshly initialised adapters of `trials` on its target layers, for the `with` block.

    Inside, the model takes the rows of all trials, equally many each, trial-major, and returns logits
    likewise. Afterwards it is the base model again. `as_on_cuda` lays trials out for the device that a simulation
    is of.
    """
    padded = base.device.type == "cuda" if as_on_cuda is None else as_on_cuda
    pack = _allocate(base, tuple(sorted(trials, key=lambda trial: trial.rank)), tuple(targets), padded=padded)
    for index, trial in enumerate(pack.trials):
        pack.load(index, initial_state(base, trial, targets))
    parts = [group.trials for group in pack.groups]
    layers = [base.model.get_submodule(target.name) for target in targets]
    if as_on_cuda is None:
        frozen = frozen_linears(layers, base.blocks)
    else:  # What is simulated has no kernels to lay weights out for.
        frozen = [FrozenLinear(layer, None) for layer in layers]
    originals: dict[str, nn.Module] = {}
    try:
        for number, (target, linear) in enumerate(zip(targets, frozen, strict=True)):
            factors = [
                factor for group in pack.groups for factor in (group.views_of_a[number], group.views_of_b[number])
            ]
            around = base.model.get_submodule(target.name.rpartition(".")[0])
            kind = SharedLora if shares_positions(around) else PackedLora
            _swap(base, originals, target.name, kind(linear, parts, factors))
        for name in base.trained_modules:
            weight, bias = (pack.views_of_heads.get(f"{name}.{key}") for key in ("weight", "bias"))
            assert weight is not None
            _swap(base, originals, name, PackedLinear(weight, bias))
        with positions_told_apart(base.model):
            yield pack
    finally:
        for name, original in originals.items():
            base.model.set_submodule(name, original)


def factor_names(layer: str) -> tuple[str, str]:
    """What PEFT calls the A and the B of a layer."""
    return f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"


def initial_state(base: BaseModel, trial: Trial, targets: Sequence[LinearLayer]) -> State:
    """What a trial starts from: nested A, B = 0, and the seed's heads."""
    state: State = {}
    for target in targets:
        name_a, name_b = factor_names(target.name)
        state[name_a] = initial_a(trial.seed, target.name, trial.rank, target.d_in)
        state[name_b] = torch.zeros(target.d_out, trial.rank)
    return state | initial_heads(base, trial.seed)


def initial_heads(base: BaseModel, seed: int) -> State:
    """The modules trained in full: the checkpoint's values, or the architecture's own initialisation by the seed."""
    state: State = {}
    for name in base.trained_modules:
        original = cast(nn.Linear, base.model.get_submodule(name))  # `load_base` accepts no other
        # The architecture draws from torch's global generator, which is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(seed, name).initial_seed())
            module = nn.Linear(original.in_features, original.out_features, bias=original.bias is not None)
            if name in base.fresh_modules:
                base.model._init_weights(module)
            else:
                module.load_state_dict({key: value.float().cpu() for key, value in original.state_dict().items()})
        state |= {f"{name}.{key}": value.detach() for key, value in module.state_dict().items()}
    return state


def _allocate(base: BaseModel, trials: tuple[Trial, ...], targets: tuple[LinearLayer, ...], *, padded: bool) -> Pack:
    inputs, outputs = _widths(targets)
    width = sum(torch.Size(shape).numel() for shape in base.trained_shapes.values())
    groups: list[PackGroup] = []
    for _, members in groupby(trials, key=lambda trial: None if padded else trial.rank):
        same = list(members)
        start = groups[-1].trials.stop if groups else 0
        a, b = (
            torch.zeros(len(same), same[-1].rank, size, dtype=DTYPES[base.dtype], device=base.device)
            for size in (inputs, outputs)
        )
        views_of_a = a.split([target.d_in for target in targets], dim=2)
        views_of_b = b.split([target.d_out for target in targets], dim=2)
        part = slice(start, start + len(same))
        groups.append(PackGroup(part, a, b, tuple(map(nn.Parameter, views_of_a)), tuple(map(nn.Parameter, views_of_b))))
    heads = torch.zeros(len(trials), width, device=base.device)
    return Pack(
        base=base,
        trials=trials,
        targets=targets,
        rows=tuple(torch.zeros(trial.rank * (inputs + outputs) + width, device=base.device) for trial in trials),
        groups=tuple(groups),
        heads=heads,
        views_of_heads={name: nn.Parameter(view) for name, view in _heads(base, heads).items()},
    )


def _widths(targets: Sequence[LinearLayer]) -> tuple[int, int]:
    """The sums of all target layers' d_in, and of their d_out."""
    return sum(target.d_in for target in targets), sum(target.d_out for target in targets)


def _heads(base: BaseModel, flat: Float32[Tensor, "*trials params"]) -> State:
    """Views of the modules trained in full, by their parameters' names."""
    sizes = [torch.Size(shape).numel() for shape in base.trained_shapes.values()]
    views = flat.split(sizes, dim=-1)
    shapes = base.trained_shapes.items()
    return {name: view.unflatten(-1, shape) for (name, shape), view in zip(shapes, views, strict=True)}


def _taken(views: Iterable[nn.Parameter], of: Tensor) -> Tensor:
    """The gradients of views, laid out as what they are views of; they have none afterwards."""
    grads = []
    for view in views:
        # A module that the forward never used has no gradient.
        grads.append(torch.zeros_like(view) if view.grad is None else view.grad)
        view.grad = None
    return torch.cat([grad.reshape(*of.shape[:-1], -1) for grad in grads], dim=-1) if grads else torch.zeros_like(of)


def _swap(base: BaseModel, originals: dict[str, nn.Module], name: str, replacement: nn.Module) -> None:
    originals[name] = base.model.get_submodule(name)
    base.model.set_submodule(name, replacement)
