"""What a batch's labels, or its learned tokens, are worth to the base model and what is attached to it.

Logits of a large vocabulary are the largest tensor of a training step, and nobody needs them all at once: the
output layer runs on the learned tokens only, some at a time. Where it is frozen, the gradient of what enters it is
computed beside; where it is trained, it runs again in the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rankwise.base.model import BaseModel
from rankwise.lora.frozen import FrozenLinear
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
    if not head.weight.requires_grad:
        found = _OfFrozenOutputLayer.apply(hidden, FrozenLinear(head, None), targets, size)  # type: ignore[no-untyped-call]
        return cast(tuple[Tensor, Tensor], found)
    if len(targets) <= size:
        return of_chunk(hidden, targets)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    parts = [cast(tuple[Tensor, Tensor], checkpoint(of_chunk, *chunk, use_reentrant=False)) for chunk in chunks]
    nlls, rights = zip(*parts, strict=True)
    return torch.cat(nlls), torch.cat(rights)


class _OfFrozenOutputLayer(torch.autograd.Function):
    """Each token's NLL, and whether it is the likeliest, of what enters a frozen output layer.

    A token's logits are all that the gradient of its NLL needs: it is made of them at once, and they are neither kept
    nor computed twice (Hsu et al. 2024, arXiv:2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "tokens d_in"], head: FrozenLinear, labels: Int[Tensor, " tokens"], size: int
    ) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        nll, right, gradients = [], [], []
        for x, of_x in zip(hidden.split(size), labels.split(size), strict=True):
            chosen = of_x[:, None]
            logits = head(x).float()
            greatest, predicted = logits.max(dim=-1, keepdim=True)
            of_label = logits.gather(1, chosen)
            terms = logits.sub_(greatest).exp_()
            total = terms.sum(dim=-1, keepdim=True)
            nll.append(greatest + total.log() - of_label)
            right.append((predicted == chosen).long())
            if ctx.needs_input_grad[0]:
                probabilities = terms.div_(total)
                error = probabilities.scatter_add_(1, chosen, torch.full_like(total, -1))
                gradients.append(head.input_gradients(error.to(x.dtype)))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        found = torch.cat(nll).squeeze(1), torch.cat(right).squeeze(1)
        ctx.mark_non_differentiable(found[1])
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return gradients * grads[0][:, None].to(gradients.dtype), None, None, None


def _plain_output_layer(base: BaseModel) -> nn.Linear | None:
    """The output layer, where logits are its product and nothing more.

    With a pack's adapters on it, it is not: they need the rows of all trials, equally many each.
    """
    head = base.model.get_output_embeddings() if base.plain_head else None
    return head if isinstance(head, nn.Linear) else None


def _vocabulary(base: BaseModel) -> int:
    size: int = base.model.config.get_text_config().vocab_size
    return size
