"""What the largest rank's trials are worth on validation when they are cut to smaller ranks, without training these."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean

from torch.nn.functional import pad

from rankwise.base.shapes import LinearLayer
from rankwise.compare.journal import Event
from rankwise.compare.plan import divide
from rankwise.compare.training import read_trained, trials_at_once
from rankwise.compare.under_way import Run
from rankwise.lora.attach import State, attached, factor_names
from rankwise.records import Evaluation, Trial, loss_in
from rankwise.spectrum.adapter import one_thread, truncated
from rankwise.train.loop import evaluate


def cut_losses(run: Run, trials: Sequence[Trial], ranks: Sequence[int]) -> dict[int, float]:
    """Mean losses on validation, over `trials` (of one rank, one a seed), of each of them cut to each of the `ranks`.

    In the metric that decides. The journal keeps them.
    """
    ids = [trial.id for trial in trials]
    known = [event for event in run.journal.of("cut") if (event["trials"], event["ranks"]) == (ids, list(ranks))]
    found = known[-1] if known else _score(run, trials, ranks)
    return {
        rank: loss_in(run.prepared.config.metric, nll=nll, accuracy=accuracy)
        for rank, nll, accuracy in zip(ranks, found["nll"], found["accuracy"], strict=True)
    }


def _score(run: Run, trials: Sequence[Trial], ranks: Sequence[int]) -> Event:
    run.tell(f"cutting rank {trials[0].rank} to smaller ones")
    started = time.monotonic()
    prepared, base, targets = run.prepared, run.prepared.base, run.prepared.targets
    ordered = {trial.seed: (trial, in_order(read_trained(run, trial), targets)) for trial in trials}
    rate = trials[0].learning_rate
    smaller = [prepared.config.trial(rank, rate, seed) for seed in ordered for rank in ranks]
    evaluations: dict[int, list[Evaluation]] = {rank: [] for rank in ranks}
    for members in divide(smaller, trials_at_once(prepared, run.journal)):
        with attached(base, members, targets) as pack:
            for index, trial in enumerate(pack.trials):
                whole, state = ordered[trial.seed]
                pack.load(index, cut(state, targets, whole, trial))
            scored = evaluate(pack.base, len(pack.trials), prepared.task, prepared.settings.steps)
            for trial, evaluation in zip(pack.trials, scored, strict=True):
                evaluations[trial.rank].append(evaluation)
    return run.journal.append(
        "cut",
        trials=[trial.id for trial in trials],
        ranks=list(ranks),
        nll=[fmean(one.nll for one in evaluations[rank]) for rank in ranks],
        accuracy=[fmean(one.accuracy for one in evaluations[rank]) for rank in ranks],
        seconds=time.monotonic() - started,
    )


def in_order(state: State, targets: Sequence[LinearLayer]) -> State:
    """The same updates, directions in order: the first k rows of A and columns of B are the nearest of rank k.

    Where a layer has fewer directions than the rank, the others are 0.
    """
    ordered = dict(state)
    with one_thread():
        for target in targets:
            name_a, name_b = factor_names(target.name)
            rank = len(state[name_a])
            a, b = truncated(state[name_a], state[name_b], rank)
            ordered[name_a] = pad(a, (0, 0, 0, rank - len(a))).float()
            ordered[name_b] = pad(b, (0, rank - len(a))).float()
    return ordered


def cut(ordered: State, targets: Sequence[LinearLayer], whole: Trial, to: Trial) -> State:
    """A trial's state, its directions in order, at another's smaller rank and scaling; heads as they are."""
    smaller = dict(ordered)
    for target in targets:
        name_a, name_b = factor_names(target.name)
        smaller[name_a] = ordered[name_a][: to.rank]
        smaller[name_b] = ordered[name_b][:, : to.rank] * (whole.scaling / to.scaling)
    return smaller
