"""The memory of a step of this project's own packs: the training loop itself, on fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from rankwise.base.first_token import compute_first_token_only, computes_first_token_only
from rankwise.base.model import DTYPES, BaseModel, describe_base, remove_dropout
from rankwise.base.shapes import LinearLayer, is_causal, meta_model
from rankwise.errors import UserError
from rankwise.lora.attach import attached
from rankwise.memory.build import give_storage, meta_step_model
from rankwise.memory.cuda import WORKSPACE_BYTES
from rankwise.memory.settings import StepSettings
from rankwise.memory.simulate import fake_tensors
from rankwise.memory.trace import StorageTracker, Trace
from rankwise.records import Trial
from rankwise.tasks.task import Batch, Learned
from rankwise.train.likelihood import likelihood
from rankwise.train.loop import PackOptimizer, checkpointed_activations
from rankwise.train.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Where configurations of transformers say what is done to logits: Gemma 2, Cohere, Granite, Falcon H1.
_OF_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def simulate_pack(
    base: BaseModel,
    trials: Sequence[Trial],
    targets: Sequence[LinearLayer],
    training: TrainingSettings,
    length: int,
    *,
    cuda: bool,
) -> Trace:
    """A step of these trials on fake tensors; of `base` only the description and the configuration are used."""
    config = base.model.config
    with torch.device("meta"):
        # What transformers' Auto classes call; the class may be of code that the model brings.
        model = type(base.model)._from_config(
            config, dtype=DTYPES[base.dtype], attn_implementation=config._attn_implementation
        )
    remove_dropout(model)
    if computes_first_token_only(base.model):
        compute_first_token_only(model)
    with fake_tensors(cuda=cuda) as device:
        give_storage(model.requires_grad_(False).train(), device)
        base = replace(base, model=model, device=device)
        workspace_bytes = WORKSPACE_BYTES if cuda else 0
        return trace_pack(base, trials, targets, training, length, as_on_cuda=cuda, workspace_bytes=workspace_bytes)


def trace_pack(
    base: BaseModel,
    trials: Sequence[Trial],
    targets: Sequence[LinearLayer],
    training: TrainingSettings,
    length: int,
    *,
    as_on_cuda: bool | None = None,
    workspace_bytes: int = 0,
) -> Trace:
    """Two steps of these trials on full batches of `length` tokens; the first makes the optimiser's states."""
    tracker = StorageTracker(workspace_bytes)
    tracker.claim([*base.model.parameters(), *base.model.buffers()], "base_weights")
    with (
        attached(base, trials, targets, as_on_cuda=as_on_cuda) as pack,
        checkpointed_activations(base, training),
    ):
        copies = [copy for group in pack.groups for copy in (group.a, group.b)]
        tracker.claim([*pack.rows, *copies, pack.heads], "adapter_weights")
        optimizer = PackOptimizer(pack, training)
        with tracker:
            for number in range(2):
                with tracker.phase("forward"):
                    rows = len(trials) * training.batch_size
                    ids = torch.ones(rows, length, dtype=torch.long, device=base.device)
                    mask = torch.ones_like(ids)
                    mask[:, -1] = 0  # where nothing is padded the model may do without a mask
                    batch = Batch(ids, mask, None, ids[:, 0], _all_learned(ids) if base.causal else None)
                    loss = likelihood(base, batch).nll.sum()
                with tracker.phase("backward"):
                    loss.backward()
                with tracker.phase("update"):
                    optimizer.collect()
                    tracker.claim((row.grad for row in optimizer.rows if row.grad is not None), "gradients")
                    optimizer.step(number)
                for row in optimizer.rows:
                    states = optimizer.adamw.state[row].values()
                    tracker.claim((state for state in states if isinstance(state, torch.Tensor)), "optimizer_states")
    tracker.trace.begins = len(tracker.trace.events)  # there are two already
    return tracker.so_far()


def _all_learned(ids: torch.Tensor) -> Learned:
    """Every token but the first of each row: at most so many are."""
    rows, length = ids.shape
    return Learned(
        torch.arange(rows, device=ids.device).repeat_interleave(length - 1, output_size=rows * (length - 1)),
        torch.arange(1, length, device=ids.device).repeat(rows),
    )


def _changes_logits(config: PreTrainedConfig) -> bool:
    """Whether the model scales or caps what leaves its output layer; of a loaded one that is tried."""
    text = config.get_text_config()
    return any(getattr(text, name, None) not in (None, 1) for name in _OF_LOGITS)


def pack_of(
    config: PreTrainedConfig, rank: int, pack_size: int, settings: StepSettings
) -> tuple[BaseModel, list[Trial], TrainingSettings]:
    """A base model on the meta device, as many trials of one rank, and how they are trained.

    Raises `UserError` for settings that packs do not have.
    """
    plain = StepSettings(
        batch_size=settings.batch_size,
        seq_len=settings.seq_len,
        dtype=settings.dtype,
        checkpointing=settings.checkpointing,
        attention=settings.attention,
        padding=settings.padding,
    )
    if settings != plain or settings.dtype == "float16":
        raise UserError(
            "engine pack has float32 adapters with adamw on a base in float32 or bfloat16: leave out the other options"
        )
    causal = is_causal(config)
    model = meta_step_model(config, settings) if causal else meta_model(config)
    if settings.attention == "eager":
        model.config._attn_implementation = "eager"
    base = describe_base(
        name=config.model_type,
        revision="",
        model=model,
        tokenizer=PreTrainedTokenizerBase(),  # no text is read
        device=torch.device("meta"),
        dtype=cast(Any, settings.dtype),
        fresh=frozenset(),
        causal=causal,
    )
    base = replace(base, plain_head=causal and not _changes_logits(config))
    training = TrainingSettings(steps=2, batch_size=settings.batch_size, checkpointing=settings.checkpointing)
    return base, [Trial(rank, float(rank), False, 1e-3, seed) for seed in range(pack_size)], training
