"""DeBERTa's relative positions in a pack.

Its attention projects the embeddings of relative positions by the layers that project tokens, once for a whole batch:
a layer with adapters has as many projections of them as trials. Attention of `trials` times as many heads, over a batch
of one trial's rows, has its own for each; so transformers' code computes them, unaware of trials.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from rankwise.lora.packed import PackedLora


def shares_positions(module: nn.Module) -> bool:
    """Whether this is the attention of DeBERTa v2 or v3; the first DeBERTa has another."""
    return type(module).__name__ == "DisentangledSelfAttention" and hasattr(module, "disentangled_attention_bias")


@contextmanager
def positions_told_apart(model: nn.Module) -> Iterator[None]:
    """Within the `with` block such attention takes the rows of all trials of a pack, trial-major."""
    changed = [module for module in model.modules() if shares_positions(module)]
    own = [type(module) for module in changed]
    try:
        for module in changed:
            module.__class__ = type("PackedSelfAttention", (_PackedSelfAttention, type(module)), {})
        yield
    finally:
        for module, before in zip(changed, own, strict=True):
            module.__class__ = before


class SharedLora(PackedLora):
    """A layer of such attention. A batch of one is what all trials share: its outputs are theirs, side by side."""

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch outputs"]:
        if self.trials == 1 or len(x) > 1:
            return super().forward(x)
        by_trial = super().forward(x.expand(self.trials, *x.shape[1:]))
        return by_trial.movedim(0, -2).flatten(-2)[None]


class _PackedSelfAttention:
    """What stands before the attention's own class."""

    def disentangled_attention_bias(self, query_layer: Tensor, key_layer: Tensor, *others: Any) -> Tensor:
        attention: Any = self
        own: Any = super()
        heads, trials = attention.num_attention_heads, _trials(attention)
        attention.num_attention_heads = trials * heads
        try:
            by_row: Tensor = own.disentangled_attention_bias(
                _as_heads(query_layer, trials, heads), _as_heads(key_layer, trials, heads), *others
            )
        finally:
            attention.num_attention_heads = heads
        bias: Tensor = by_row.unflatten(0, (-1, trials, heads)).transpose(0, 1).flatten(0, 2)
        return bias

    def transpose_for_scores(self, x: Tensor, attention_heads: int) -> Tensor:
        """A projection without adapters is the same for all trials."""
        attention: Any = self
        own: Any = super()
        times = attention_heads * attention.attention_head_size // x.shape[-1]
        scores: Tensor = own.transpose_for_scores(x if times == 1 else x.repeat(1, 1, times), attention_heads)
        return scores


def _trials(attention: Any) -> int:
    """How many have projections of positions of their own; 1 where all have the base model's."""
    names = ("query_proj", "key_proj") if attention.share_att_key else ("pos_query_proj", "pos_key_proj")
    projections = [getattr(attention, name, None) for name in names]
    return max((layer.trials for layer in projections if isinstance(layer, SharedLora)), default=1)


def _as_heads(layer: Tensor, trials: int, heads: int) -> Tensor:
    """Of (trials · rows · heads, tokens, size) to (rows · trials · heads, tokens, size)."""
    by_row: Tensor = layer.unflatten(0, (trials, -1, heads)).transpose(0, 1).flatten(0, 2)
    return by_row
