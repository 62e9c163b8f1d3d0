"""The memory of a training step in closed form: instant, every term named, and only roughly right.

The dominant term is what the model's code keeps for the backward pass, and no formula knows that code. This one
is a cross-check of the simulation and an answer where nothing can be simulated. What experts keep is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rankwise.base.outline import Sizes
from rankwise.base.quantize import Quantization
from rankwise.base.shapes import LinearLayer
from rankwise.memory.settings import DTYPE_BYTES, StepSettings
from rankwise.records import MemoryParts

# Bytes of a quantised weight. Sources: Dettmers et al. 2023, arXiv 2305.14314, section 3: 4 bits and a
# float32 for each block of 64, or of 64 and 256 with double quantisation; int8 has a float32 a row, which is little.
QUANTIZED_BYTES: dict[Quantization, float] = {
    "nf4": 0.5 + 4 / 64,
    "nf4-double": 0.5 + 1 / 64 + 4 / 64 / 256,
    "int8": 1.0,
}
_STATE_BYTES = {"adamw-8bit": 2 + 2 * 4 / 256, "sgd": 0.0, "adafactor": 0.0}


def closed_form(
    layers: Sequence[LinearLayer],
    adapted: Sequence[LinearLayer],
    quantizable: Sequence[LinearLayer],
    *,
    total_params: int,
    trainable_params: int,
    hidden_size: int,
    sizes: Sizes,
    rank: int | None,
    settings: StepSettings,
) -> MemoryParts:
    """The parts of the peak: at the loss, or where in the backward pass there is more.

    With T = batch · length tokens, b bytes a weight of the base model and c of what is trained (b in full fine-tuning):

    - base weights: b · total_params; quantised, `quantizable` layers have their packed size and the rest keeps b.
    - adapter weights: c · trainable_params (none with rank None, full fine-tuning).
    - optimiser states: two moments of c bytes (AdamW), 2.03 bytes (8-bit AdamW), none (SGD, Adafactor nearly so).
    - at the loss, activations: T · (Σ over linear layers b · d_out, the outputs that what follows keeps
      + two norms a block with float32 copies, 2 · 8 · hidden_size
      + Σ over adapted layers (c · d_in, the input cast to the adapter's dtype, + c · rank)
      + where attention is eager, s · heads · length a block; s is the softmax in float32 and its copy of b bytes in
      language models, and in encoders the softmax, a mask and what dropout leaves, 2 b + 1).
      A block that runs several times keeps this each time.
      And T · 4 · vocabulary for the log-probabilities; their gradients, twice that, are overhead. Where the
      loss is chunked T is at most 1024 in these two.
    - with checkpointing T · b · hidden_size a block at the loss; and, when the last block is computed again, the
      above of one block beside that, without the logits.
    - at the end of the backward pass, gradients: c · trainable_params, and no activations.

    In full fine-tuning every linear layer keeps its input, b · d_in, as an adapted one does.
    """
    tokens = settings.batch_size * settings.seq_len
    b = DTYPE_BYTES[settings.dtype]
    c = b if rank is None else DTYPE_BYTES[settings.adapter_dtype]
    keeping = layers if rank is None else adapted
    quantized = sum(layer.weights for layer in quantizable) if settings.quantize != "none" and rank is not None else 0
    packed = QUANTIZED_BYTES.get(settings.quantize, 0.0) * quantized
    blocks = max(1, len({match[0] for layer in layers if (match := re.search(r"\.\d+\.", layer.name))}))
    outputs = sum(b * layer.d_out for layer in layers)
    inputs = sum(c * (layer.d_in + (rank or 0)) for layer in keeping)
    eager = settings.attention == "eager" or not sizes.sdpa
    softmax = (4 if b == 4 else 4 + b) if sizes.causal else 2 * b + 1
    scores = softmax * sizes.heads * settings.seq_len if eager else 0
    a_block = round(tokens * ((outputs + inputs) / blocks + 16 * hidden_size + scores))
    runs = blocks * sizes.passes
    kept = runs * (tokens * b * hidden_size if settings.checkpointing else a_block)
    logits = 4 * sizes.vocabulary * (min(tokens, 1024) if settings.loss == "chunked" else tokens)
    static = {
        "base_weights": round(b * (total_params - quantized) + packed),
        "adapter_weights": 0 if rank is None else c * trainable_params,
        "optimizer_states": round(_STATE_BYTES.get(settings.optimizer, 2 * c) * trainable_params),
    }
    moments = [
        MemoryParts(gradients=0, activations=kept + logits, overhead=2 * logits, **static),
        MemoryParts(gradients=c * trainable_params, activations=0, overhead=0, **static),
    ]
    if settings.checkpointing:
        moments.append(MemoryParts(gradients=0, activations=kept + a_block, overhead=0, **static))
    return max(moments, key=lambda parts: parts.total)
