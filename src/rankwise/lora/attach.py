"""Put a pack's adapters on a base model, take them off again, and slice out one trial.

Everything a trial trains (each A and B, each head) lies in one float32 row, and the rows of
equal-rank trials lie in one matrix. So a trial's gradient norm is the norm of a row, an optimiser has
one parameter a trial, a checkpoint is a few matrices, and a trial's memory is countable by eye.

A row begins with all of A, then comes all of B, then the heads. Layers compute with a copy of A and B, A scaled and
both in the base model's dtype, that is made once a step: on a GPU the many small casts of a layer at a time would
take longer than its products. Gradients come as autograd makes them, of the copy, and are gathered into such a
matrix once a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from rankwise.base.load import DTYPES, BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.lora.packed import PackedLinear, PackedLora, RankGroup, generator_for, initial_a
from rankwise.records import Trial

State = dict[str, Tensor]


@dataclass(frozen=True)
class Section:
    """Where one tensor lies in a trial's row."""

    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class PackGroup:
    """The storage of one rank group: a row a trial.

    The first `in_a` columns of `values` are those of A, and `copied` is what layers compute with of A and B: its
    width ends where the heads begin. `parameters` are views, (trials, *shape) each, of `copied`; heads' of `values`.
    """

    group: RankGroup
    scaling: Float32[Tensor, "trials 1"]
    sections: tuple[Section, ...]
    in_a: int
    values: Float32[Tensor, "trials params"]
    copied: Float[Tensor, "trials adapters"]
    parameters: Mapping[str, nn.Parameter]

    @torch.no_grad()
    def refresh(self) -> None:
        """Let the layers see `values` as they are now."""
        in_b = slice(self.in_a, self.copied.shape[1])
        self.copied[:, : self.in_a] = self.values[:, : self.in_a] * self.scaling
        self.copied[:, in_b] = self.values[:, in_b]

    def take_grads(self) -> Float32[Tensor, "trials params"]:
        """The gradients since the last call, a row a trial in the order of `sections`."""
        grads = []
        for section in self.sections:
            parameter = self.parameters[section.name]
            # A module that the forward never used has no gradient.
            grads.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            parameter.grad = None
        rows = torch.cat([grad.flatten(1) for grad in grads], dim=1).float()
        rows[:, : self.in_a] *= self.scaling
        return rows


@dataclass(frozen=True)
class Pack:
    """Trials attached to one base model. `trials` are ordered by rank: that is the order of every trial axis."""

    base: BaseModel
    trials: tuple[Trial, ...]
    groups: tuple[PackGroup, ...]

    @property
    def rows(self) -> list[Tensor]:
        """Each trial's parameters as one vector."""
        return [row for group in self.groups for row in group.values]

    def take_grads(self) -> list[Tensor]:
        """Each trial's gradient since the last call as one vector."""
        return [row for group in self.groups for row in group.take_grads()]

    def state(self, index: int) -> State:
        """A copy on the CPU of what one trial trains, by PEFT's parameter names."""
        group, row = self._row(index)
        return {
            section.name: row[section.offset : section.offset + section.numel].view(section.shape).cpu().clone()
            for section in group.sections
        }

    def load(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Overwrite one trial with a state of the same names and shapes."""
        group, row = self._row(index)
        if set(state) != {section.name for section in group.sections}:
            raise ValueError("the state's tensors are not those of this trial")
        for section in group.sections:
            row[section.offset : section.offset + section.numel] = state[section.name].reshape(-1).to(row)
        group.refresh()

    def refresh(self) -> None:
        """Let the layers see the rows as they are now."""
        for group in self.groups:
            group.refresh()

    def _row(self, index: int) -> tuple[PackGroup, Tensor]:
        for group in self.groups:
            if group.group.start <= index < group.group.stop:
                return group, group.values[index - group.group.start]
        raise IndexError(index)


@contextmanager
def attached(base: BaseModel, trials: Sequence[Trial], targets: Sequence[LinearLayer]) -> Iterator[Pack]:
    """The base model with freshly initialised adapters of `trials` on its target layers, for the `with` block.

    Inside, the model takes a batch that is repeated once a trial, trial-major, and returns logits
    likewise. Afterwards it is the base model again.
    """
    ordered = tuple(sorted(trials, key=lambda trial: trial.rank))
    groups = tuple(_allocate(base, ordered, targets))
    pack = Pack(base, ordered, groups)
    for index, trial in enumerate(ordered):
        pack.load(index, initial_state(base, trial, targets))
    rank_groups = tuple(group.group for group in groups)
    originals: dict[str, nn.Module] = {}
    try:
        for target in targets:
            factors = [
                factor
                for group in groups
                for factor in (
                    group.parameters[f"{target.name}.lora_A.weight"],
                    group.parameters[f"{target.name}.lora_B.weight"],
                )
            ]
            original = base.model.get_submodule(target.name)
            _swap(base, originals, target.name, PackedLora(original, rank_groups, factors))
        for name in base.trained_modules:
            keys = [f"{name}.{key}" for key in ("weight", "bias")]
            weights, biases = ([group.parameters[key] for group in groups if key in group.parameters] for key in keys)
            _swap(base, originals, name, PackedLinear(rank_groups, weights, biases))
        yield pack
    finally:
        for name, original in originals.items():
            base.model.set_submodule(name, original)


def initial_state(base: BaseModel, trial: Trial, targets: Sequence[LinearLayer]) -> State:
    """What a trial starts from: nested A, B = 0, and the seed's heads."""
    state: State = {}
    for target in targets:
        state[f"{target.name}.lora_A.weight"] = initial_a(trial.seed, target.name, trial.rank, target.d_in)
        state[f"{target.name}.lora_B.weight"] = torch.zeros(target.d_out, trial.rank)
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


def _allocate(base: BaseModel, trials: Sequence[Trial], targets: Sequence[LinearLayer]) -> Iterator[PackGroup]:
    start = 0
    for rank, members in groupby(trials, key=lambda trial: trial.rank):
        same = list(members)
        in_a, in_b = (rank * sum(sizes) for sizes in ([one.d_in for one in targets], [one.d_out for one in targets]))
        sections = tuple(_sections(base, rank, targets))
        values = torch.zeros(len(same), sections[-1].offset + sections[-1].numel, device=base.device)
        copied = torch.zeros(len(same), in_a + in_b, dtype=DTYPES[base.dtype], device=base.device)
        yield PackGroup(
            group=RankGroup(start, start + len(same), rank),
            scaling=torch.tensor([[trial.scaling] for trial in same], dtype=torch.float32, device=base.device),
            sections=sections,
            in_a=in_a,
            values=values,
            copied=copied,
            parameters={
                section.name: _view(copied if section.offset < in_a + in_b else values, section) for section in sections
            },
        )
        start += len(same)


def _sections(base: BaseModel, rank: int, targets: Sequence[LinearLayer]) -> Iterator[Section]:
    shapes = {f"{target.name}.lora_A.weight": (rank, target.d_in) for target in targets}
    shapes |= {f"{target.name}.lora_B.weight": (target.d_out, rank) for target in targets}
    offset = 0
    for name, shape in (shapes | dict(base.trained_shapes)).items():
        section = Section(name, offset, shape)
        yield section
        offset += section.numel


def _view(storage: Tensor, section: Section) -> nn.Parameter:
    columns = slice(section.offset, section.offset + section.numel)
    return nn.Parameter(storage[:, columns].view(len(storage), *section.shape))


def _swap(base: BaseModel, originals: dict[str, nn.Module], name: str, replacement: nn.Module) -> None:
    originals[name] = base.model.get_submodule(name)
    base.model.set_submodule(name, replacement)
