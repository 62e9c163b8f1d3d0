"""The frozen base model: what the rest of the house knows of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankwise.base.quantize import Quantization, stored_bytes
from rankwise.base.shapes import head_modules, model_positions, within

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Blocks(NamedTuple):
    """A frozen weight in both directions, laid out for this machine's products."""

    weight: Tensor
    transposed: Tensor


@dataclass(frozen=True)
class BaseModel:
    """A frozen model and what the rest of the house must know of it.

    `trained_modules` are the linear layers trained in full beside every adapter: what the checkpoint
    did not contain (`fresh_modules`: a head, a BERT pooler) and the heads that PEFT always trains;
    `trained_shapes` are their parameters by name. A language model (`causal`) has none; `plain_head` says that its
    logits are its output layer's product and nothing more. `dtype` is what is computed in, and that of all weights
    that `quantize` leaves as they are.
    `revision` pins the weights: the hub's commit, or a SHA-256 over a local directory's weights. `blocks` are copies of
    linear layers' weights, made when they are first trained beside.
    """

    name: str
    revision: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: Literal["float32", "bfloat16"]
    trained_modules: tuple[str, ...]
    fresh_modules: frozenset[str]
    trained_shapes: Mapping[str, tuple[int, ...]]
    causal: bool
    plain_head: bool = False
    quantize: Quantization = "none"
    blocks: WeakKeyDictionary[nn.Module, Blocks] = field(default_factory=WeakKeyDictionary, repr=False, compare=False)

    @property
    def stored_as(self) -> str:
        """How the frozen linear layers are stored, in a word."""
        return self.dtype if self.quantize == "none" else self.quantize

    @property
    def bytes(self) -> int:
        """Storage of the weights as loaded."""
        return stored_bytes(self.model)

    @property
    def blocks_bytes(self) -> int:
        """Storage of the weights' copies in blocks."""
        return sum(copy.numel() * copy.element_size() for blocks in self.blocks.values() for copy in blocks)


def describe_base(
    *,
    name: str,
    revision: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: Literal["float32", "bfloat16"],
    fresh: frozenset[str],
    causal: bool,
) -> BaseModel:
    """Freeze a model, which is changed in place, and find what is trained in full beside an adapter."""
    model.requires_grad_(False)
    remove_dropout(model)
    model.train()
    trained = trained_modules(model, fresh)
    return BaseModel(
        name=name,
        revision=revision,
        model=model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        trained_modules=trained,
        fresh_modules=fresh,
        trained_shapes={
            f"{module}.{key}": tuple(parameter.shape)
            for module in trained
            for key, parameter in model.get_submodule(module).named_parameters()
        },
        causal=causal,
    )


@contextmanager
def without(model: PreTrainedModel, names: Iterable[str]) -> Iterator[None]:
    """The model with these modules taken out, for the `with` block: what enters them leaves them."""
    taken = {name: model.get_submodule(name) for name in names}
    try:
        for name in taken:
            model.set_submodule(name, nn.Identity())
        yield
    finally:
        for name, module in taken.items():
            model.set_submodule(name, module)


def position_limit(base: BaseModel) -> int | None:
    """The longest sequence that the model and its tokenizer allow; None where nothing limits it."""
    known = [
        limit
        for limit in (model_positions(base.model), base.tokenizer.model_max_length)
        if limit is not None and 0 < limit < 10**9
    ]
    return min(known, default=None)


def some_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int, length: int
) -> Int[Tensor, "rows length"]:
    """Tokens to try a model on: different ones, as far as it has so many, and no padding."""
    count = model.get_input_embeddings().num_embeddings
    ids = torch.arange(rows * length, device=model.device).remainder(count).view(rows, length)
    padding = tokenizer.pad_token_id
    return ids if padding is None else ids.masked_fill(ids == padding, (padding + 1) % count)


def trained_modules(model: PreTrainedModel, fresh: frozenset[str]) -> tuple[str, ...]:
    """What is trained in full: modules that the checkpoint lacks (`fresh`), and heads."""
    heads = head_modules(model)
    return tuple(
        name
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and (name in fresh or within(name, heads))
    )


def remove_dropout(model: PreTrainedModel) -> None:
    """Set every dropout probability to 0, in place, and how far a mixture's routers shake what enters them."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        # Attention functions read attributes such as `attention_dropout`, from the module or its configuration.
        for holder in (module, getattr(module, "config", None)):
            for attribute, value in vars(holder).items() if holder is not None else ():
                if ("drop" in attribute or "jitter" in attribute) and isinstance(value, float):
                    setattr(holder, attribute, 0.0)
