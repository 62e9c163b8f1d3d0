"""What a batch's labels, or its learned tokens, are worth to the base model and what is attached to it.

Logits of a large vocabulary are the largest tensor of a training step, and nobody needs them all at once: the
output layer runs on the learned tokens only, some at a time, and again in the backward pass.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rankwise.base.model import BaseModel
from rankwise.tasks.task import Batch, Learned

_LOGITS = 2**25  # at most so many at once


def tokens_at_once(base: BaseModel, most: int) -> int:
    """How many tokens, over all trials, an evaluation may take at once; `most` where logits come in parts."""
    if not base.causal or _plain_output_layer(base) is not None:
        return most
    return min(most, _LOGITS // _vocabulary(base))


class Likelihood(NamedTuple):
    """Negative log-likelihoods in nats, summed over an example's learned tokens, or of its class.

    `right` counts the tokens (or the class) to which the model gives the highest probability; `predicted` is the
    likeliest class, None where tokens are learned.
    """

    nll: Float[Tensor, " batch"]
    right: Int[Tensor, " batch"]
    predicted: Int[Tensor, " batch"] | None


def likelihood(base: BaseModel, batch: Batch) -> Likelihood:
    """Of each row; where the adapters of several trials are on the base model, rows are trial-major."""
    if batch.learned is None:
        logits = base.model(**batch.inputs).logits
        nll = functional.cross_entropy(logits.float(), batch.labels, reduction="none")
        predicted = logits.argmax(dim=-1)
        return Likelihood(nll, (predicted == batch.labels).long(), predicted)
    nll, right = _of_tokens(base, batch, batch.learned)
    sums = nll.new_zeros(len(batch.labels)).index_add(0, batch.learned.rows, nll)
    counts = right.new_zeros(len(batch.labels)).index_add(0, batch.learned.rows, right)
    return Likelihood(sums, counts, None)


def _of_tokens(
    base: BaseModel, batch: Batch, learned: Learned
) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """Each learned token's NLL, and whether it is the likeliest, given all before it."""
    targets = batch.input_ids[learned.rows, learned.columns]

    def at_tokens(outputs: Tensor) -> Tensor:
        return outputs[learned.rows, learned.columns - 1]

    def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        nll = functional.cross_entropy(logits.float(), labels, reduction="none")
        return nll, (logits.detach().argmax(dim=-1) == labels).long()

    head = _plain_output_layer(base)
    if head is None:
        return judged(at_tokens(base.model(**batch.inputs).logits), targets)

    def of_chunk(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return judged(head(hidden), labels)

    hidden = at_tokens(base.model.base_model(**batch.inputs).last_hidden_state)
    size = max(1, _LOGITS // _vocabulary(base))
    if len(targets) <= size:
        return of_chunk(hidden, targets)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    parts = [cast(tuple[Tensor, Tensor], checkpoint(of_chunk, *chunk, use_reentrant=False)) for chunk in chunks]
    nlls, rights = zip(*parts, strict=True)
    return torch.cat(nlls), torch.cat(rights)


def _plain_output_layer(base: BaseModel) -> nn.Linear | None:
    """The output layer, where logits are its product and nothing more.

    With a pack's adapters on it, it is not: they need the rows of all trials, equally many each.
    """
    head = base.model.get_output_embeddings() if base.plain_head else None
    return head if isinstance(head, nn.Linear) else None


def _vocabulary(base: BaseModel) -> int:
    size: int = base.model.config.get_text_config().vocab_size
    return size
