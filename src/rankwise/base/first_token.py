"""The last layer of a BERT-like encoder, for the token that its head reads and no other.

Classifiers of this kind read the first token alone, so that of the last layer's queries, outputs and feed-forward
layers all others are computed for nothing: a seventh of a training step of a model with six layers. As the first
token's cross-attention to all, which transformers has beside its self-attention, the layer computes the one. Where all
of it is not so, which is tried on the model itself, nothing is changed.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_ROUNDING = 0.02  # of the norm of what leaves the layer, in bfloat16


class _FirstTokenLayer(nn.Module):
    """What stands before the layer's own class."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **options: Any
    ) -> Tensor:
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        layer: Any = self
        attended, _ = layer.attention(
            hidden_states[:, :1], encoder_hidden_states=hidden_states, encoder_attention_mask=mask
        )
        computed: Tensor = layer.feed_forward_chunk(attended)
        return computed


def computes_first_token_only(model: PreTrainedModel) -> bool:
    return isinstance(_last_layer(model), _FirstTokenLayer)


def compute_first_token_only(model: PreTrainedModel) -> None:
    """Change the last layer in place, of a model that is known to allow it."""
    layer = _last_layer(model)
    own = type(layer)
    layer.__class__ = type(f"FirstToken{own.__name__}", (_FirstTokenLayer, own), {})
    layer.attention.self.__class__, layer.attention.is_cross_attention = _cross_attention(own), True


@torch.no_grad()
def compute_first_token_only_if_alike(model: PreTrainedModel) -> None:
    """Change the last layer in place where that changes no logit, beyond rounding.

    How far rounding goes is measured on the layer, whose values are the checkpoint's: the logits are those of a head
    yet to be trained, which may happen to be next to nothing.
    """
    layer = _last_layer(model)
    if layer is None or _cross_attention(type(layer)) is None or getattr(model.config, "is_decoder", False):
        return
    # Two tokens, since a model may have no more positions than that; one is padding.
    ids = torch.arange(4, device=model.device).remainder(model.get_input_embeddings().num_embeddings).view(2, 2)
    mask = torch.tensor([[1, 1], [1, 0]], device=model.device)

    def forward() -> tuple[Tensor, Any]:
        """The logits, and what leaves the layer."""
        outputs: list[Any] = [None]  # code that a model brings may do without the layer
        hook = layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
        try:
            logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
        finally:
            hook.remove()
        return logits, outputs[-1]

    logits, whole = forward()
    if not isinstance(whole, Tensor):
        return
    hook = layer.register_forward_hook(lambda _, inputs, output: output * _first(output))
    try:
        reads_first = torch.equal(forward()[0], logits)
    finally:
        hook.remove()
    if not reads_first:
        return
    own, attention = type(layer), type(layer.attention.self)
    compute_first_token_only(model)
    try:
        _, first = forward()
        alike = bool((first - whole[:, :1]).norm() <= _ROUNDING * first.norm())
    # Code that a model brings may go by these names and be called otherwise.
    except Exception:
        alike = False
    if not alike:
        layer.__class__ = own
        layer.attention.self.__class__, layer.attention.is_cross_attention = attention, False


def _last_layer(model: PreTrainedModel) -> Any:
    """That of an encoder which is laid out as BERT's; None of others."""
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    layer: Any = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
    return layer if isinstance(getattr(getattr(layer, "attention", None), "self", None), nn.Module) else None


def _cross_attention(layer: type[nn.Module]) -> type[nn.Module] | None:
    """The cross-attention beside `BertLayer`, or another that goes by such a name."""
    name = layer.__name__.replace("Layer", "CrossAttention")
    found: type[nn.Module] | None = getattr(sys.modules[layer.__module__], name, None)
    return found


def _first(output: Tensor) -> Tensor:
    """1 for the first token, else 0."""
    return (torch.arange(output.shape[1], device=output.device) == 0).to(output.dtype)[:, None]
