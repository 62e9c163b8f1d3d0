"""Train a pack: one visible loop over steps that all trials take together, each on its seed's batches.

Trials never meet. Their losses are summed only so that one backward pass serves all; the sum's gradient
with respect to a trial is that trial's own. A trial whose loss is no longer finite goes on in its place
without a special case: its numbers reach nobody else, and it is marked *diverged* at the end. Taking
it out of the pack would change the shapes of the products that the others are rounded in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.lora.attach import Pack, State, attached
from rankwise.records import Evaluation, Scores, Trial, TrialResult, TrialStatus
from rankwise.tasks.task import PackRows, Split, Task, collate, evaluation_rows, pack_rows
from rankwise.train.checkpoint import CheckpointPace, PackProgress, read_checkpoint, write_checkpoint
from rankwise.train.likelihood import likelihood, tokens_at_once
from rankwise.train.settings import TrainingSettings

_REPORT_SECONDS = 0.25  # reading a loss stops a GPU, so progress is told at this pace
REPORTED_STEPS = 20  # a single small batch's loss says little
_EXPLODED = 100.0  # times the loss of the start or of chance: norms between layers keep many a lost trial finite
_EVALUATION_TOKENS = 16_384  # padded tokens in one forward of an evaluation, over all trials


@dataclass(frozen=True)
class TrainedTrial:
    """A trial's record, and what it trained."""

    result: TrialResult
    state: State


@dataclass(frozen=True)
class StepReport:
    """Where a pack stands, in the order of `trials`.

    Train losses are means over the last `REPORTED_STEPS` steps; `evaluations` are the last ones, None before the first.
    """

    trials: tuple[Trial, ...]
    step: int
    train_nll: tuple[float, ...]
    evaluations: tuple[Evaluation, ...] | None


StepObserver = Callable[[StepReport], None]


class PackOptimizer:
    """AdamW without weight decay over a pack: one parameter a trial, each with a learning rate of its own."""

    def __init__(self, pack: Pack, settings: TrainingSettings) -> None:
        self.pack = pack
        self.settings = settings
        self.rows = [nn.Parameter(row) for row in pack.rows]
        groups = [
            {"params": [row], "lr": trial.learning_rate} for row, trial in zip(self.rows, pack.trials, strict=True)
        ]
        self.adamw = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)

    def collect(self) -> None:
        """Add a batch's gradients to those before, in float32: the base model's dtype would lose small ones."""
        for row, grad in zip(self.rows, self.pack.take_grads(), strict=True):
            row.grad = grad if row.grad is None else row.grad.add_(grad)

    def step(self, number: int) -> None:
        """Clip each trial's gradient, update it and let go of the gradient; `number` is counted from 0."""
        factor = self.settings.rate_factor(number)
        for row, group, trial in zip(self.rows, self.adamw.param_groups, self.pack.trials, strict=True):
            group["lr"] = trial.learning_rate * factor
            assert row.grad is not None
            norm = torch.linalg.vector_norm(row.grad)
            # The small number is torch.nn.utils.clip_grad_norm_'s.
            row.grad.mul_((self.settings.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self.adamw.step()
        self.adamw.zero_grad()
        self.pack.refresh()


def run_pack(
    base: BaseModel,
    task: Task,
    trials: Sequence[Trial],
    targets: Sequence[LinearLayer],
    settings: TrainingSettings,
    *,
    stop: int | None = None,
    begin: Sequence[Path] = (),
    checkpoint: Path | None = None,
    observe: StepObserver = lambda report: None,
) -> list[TrainedTrial]:
    """Train trials together; results are in the pack's order (by rank, else as given).

    `stop` is the step to train to, one at which validation is scored: the last by default. `begin` are the
    states of trials that other packs left at an earlier such step, a file each. `checkpoint` is a file:
    where it exists, training goes on from it, with the same numbers as if it had never stopped (bit for
    bit on a CPU with the same number of threads); at the end it holds the pack at `stop`. `observe` is told of a step
    after its checkpoint is written.
    """
    with attached(base, trials, targets) as pack, checkpointed_activations(base, settings):
        optimizer = PackOptimizer(pack, settings)
        progress = PackProgress.start(pack.trials, settings.steps, base.device)
        if checkpoint is not None and checkpoint.exists():
            begin = [checkpoint]
        if begin:
            progress = read_checkpoint(begin, pack, optimizer.adamw, settings.steps)
        seeds = [trial.seed for trial in pack.trials]
        batches = pack_rows(task.train.input_ids.lengths, settings.batch_size, seeds)
        batches = islice(batches, progress.step * settings.accumulation, None)
        pace, told = CheckpointPace(), time.monotonic()
        while progress.step < (stop or settings.steps):
            rows = list(islice(batches, settings.accumulation))
            progress.train_nll[progress.step] = train_step(pack, optimizer, task, rows, progress.step)
            progress.step += 1
            at_rung = progress.step in settings.evaluation_steps
            if at_rung:
                progress.evaluations.append(evaluate(base, len(pack.trials), task, progress.step))
            if checkpoint is not None and (at_rung or pace.due()):
                with pace.writing():
                    write_checkpoint(checkpoint, pack, optimizer.adamw, progress)
            now = time.monotonic()
            if at_rung or now - told > _REPORT_SECONDS:
                observe(_report(progress))
                told = now
        return [_trained(pack, progress, index, task.outcomes) for index in range(len(pack.trials))]


def train_step(
    pack: Pack, optimizer: PackOptimizer, task: Task, batches: Sequence[PackRows], number: int
) -> Float[Tensor, " trials"]:
    """One optimiser step on the rows of `batches`, in the pack's order.

    Returns each trial's loss before the update: the mean over examples, or over all learned tokens.
    """
    losses = backward(pack.base, task, batches, optimizer.collect)
    optimizer.step(number)
    return losses


def backward(
    base: BaseModel, task: Task, batches: Sequence[PackRows], collect: Callable[[], None] = lambda: None
) -> Float[Tensor, " trials"]:
    """Gradients of the loss on the rows of `batches`; returns each trial's loss. `collect` is called after each."""
    shape = len(batches[0]), -1
    collated = [collate(task.train, rows.ravel(), task.pad_token_id) for rows in batches]
    outcomes = torch.stack([batch.outcomes_by_row.view(shape).sum(dim=1) for batch in collated]).sum(dim=0)
    outcomes = outcomes.to(base.device, non_blocking=True)
    losses = torch.zeros(len(outcomes), device=base.device)
    for batch in collated:
        loss = likelihood(base, batch.to(base.device)).nll.view(shape).sum(dim=1) / outcomes
        loss.sum().backward()
        collect()
        losses += loss.detach()
    return losses


@torch.no_grad()
def score(base: BaseModel, trials: int, task: Task, split: Split) -> Scores:
    """Score every example of a split with the adapters of so many trials on the base model; 1 without any."""
    nll = np.empty((trials, len(split)), dtype=np.float32)
    correct = np.empty_like(nll)
    predicted = np.empty(nll.shape, dtype=np.int32) if split.learned is None else None
    for rows in evaluation_rows(split.input_ids.lengths, tokens_at_once(base, _EVALUATION_TOKENS) // trials):
        batch = collate(split, np.tile(rows, trials), task.pad_token_id)
        of = likelihood(base, batch.to(base.device))
        shape, outcomes = (trials, -1), batch.outcomes_by_row
        right = of.right.cpu() / outcomes
        nll[:, rows] = (of.nll.cpu() / outcomes).view(shape)
        # Where every learned token is the first choice, greedy decoding writes just them.
        correct[:, rows] = ((right == 1).float() if task.exact else right).view(shape)
        if predicted is not None and of.predicted is not None:
            predicted[:, rows] = of.predicted.cpu().view(shape).numpy()
    if split.rivals is not None:
        correct = _chosen(nll, split, score(base, trials, task, split.rivals).nll, split.rivals)
    return Scores(nll, correct, predicted)


def _chosen(nll: np.ndarray, split: Split, nll_of_rivals: np.ndarray, rivals: Split) -> np.ndarray:
    """1 where an example's NLL is below that of all its rivals, else 0."""
    order = np.argsort(split.example_ids)
    rows = order[np.searchsorted(split.example_ids, rivals.example_ids, sorter=order)]
    best = np.full(nll.T.shape, np.inf)
    np.minimum.at(best, rows, nll_of_rivals.T)
    return (nll < best.T).astype(nll.dtype)


@contextmanager
def checkpointed_activations(base: BaseModel, settings: TrainingSettings) -> Iterator[None]:
    """Recompute activations in the backward pass within the `with` block, where the settings ask for it."""
    if settings.checkpointing:
        base.model.activation_checkpointing_enable({"use_reentrant": False})
        # transformers has the embeddings' outputs want gradients with it, which this kind of recomputing does not need.
        base.model.disable_input_require_grads()
    try:
        yield
    finally:
        if settings.checkpointing:
            base.model.activation_checkpointing_disable()


def evaluate(base: BaseModel, trials: int, task: Task, step: int) -> tuple[Evaluation, ...]:
    """Each trial's scores of validation, at this step."""
    scores = score(base, trials, task, task.validation)
    return tuple(
        Evaluation(step, float(nll.mean(dtype=np.float64)), float(correct.mean(dtype=np.float64)))
        for nll, correct in zip(scores.nll, scores.correct, strict=True)
    )


def _report(progress: PackProgress) -> StepReport:
    evaluations = progress.evaluations[-1] if progress.evaluations else None
    recent = progress.train_nll[max(0, progress.step - REPORTED_STEPS) : progress.step].mean(dim=0)
    return StepReport(progress.trials, progress.step, tuple(recent.tolist()), evaluations)


def _trained(pack: Pack, progress: PackProgress, index: int, outcomes: int) -> TrainedTrial:
    train_nll = tuple(progress.train_nll[: progress.step, index].tolist())
    evaluations = tuple(evaluation[index] for evaluation in progress.evaluations)
    status = trial_status(train_nll, evaluations, len(progress.train_nll), outcomes)
    return TrainedTrial(TrialResult(pack.trials[index], status, train_nll, evaluations), pack.state(index))


def trial_status(
    train_nll: Sequence[float], evaluations: Sequence[Evaluation], steps: int, outcomes: int
) -> TrialStatus:
    """What became of a trial that was to take so many steps, and chooses from so many outcomes."""
    finite = all(map(math.isfinite, [*train_nll, *(evaluation.nll for evaluation in evaluations)]))
    if not finite or max(train_nll) >= _EXPLODED * max(train_nll[0], math.log(outcomes)):
        return "diverged"
    return "trained" if len(train_nll) == steps else "dropped"
