"""What the largest rank's trials are worth on validation when they are cut to smaller ranks, without training these."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import fmean

from torch.nn.functional import pad

from rankwise.base.shapes import LinearLayer
from rankwise.compare.directory import RunDirectory
from rankwise.compare.journal import Event, Journal
from rankwise.compare.plan import divide
from rankwise.compare.prepare import Prepared
from rankwise.lora.attach import State, attached
from rankwise.lora.peft_io import read_adapter
from rankwise.records import Evaluation, Metric, Trial
from rankwise.spectrum.adapter import one_thread, truncated
from rankwise.train.loop import evaluate


def cut_losses(
    prepared: Prepared,
    directory: RunDirectory,
    journal: Journal,
    trials: Sequence[Trial],
    ranks: Sequence[int],
    metric: Metric,
    tell: Callable[[str], None],
) -> dict[int, float]:
    """Mean losses on validation, over `trials` (of one rank, one a seed), of each of them cut to each of the `ranks`.

    The journal keeps them.
    """
    ids = [trial.id for trial in trials]
    known = [event for event in journal.of("cut") if (event["trials"], event["ranks"]) == (ids, list(ranks))]
    found = known[-1] if known else _score(prepared, directory, journal, trials, ranks, tell)
    losses = found["nll"] if metric == "nll" else [1 - accuracy for accuracy in found["accuracy"]]
    return dict(zip(ranks, losses, strict=True))


def _score(
    prepared: Prepared,
    directory: RunDirectory,
    journal: Journal,
    trials: Sequence[Trial],
    ranks: Sequence[int],
    tell: Callable[[str], None],
) -> Event:
    tell(f"cutting rank {trials[0].rank} to smaller ones")
    started = time.monotonic()
    smaller = {
        prepared.config.trial(rank, trial.learning_rate, trial.seed): trial for trial in trials for rank in ranks
    }
    evaluations: dict[int, list[Evaluation]] = {rank: [] for rank in ranks}
    for members in divide(list(smaller), prepared.most_trials):
        with attached(prepared.base, members, prepared.targets) as pack:
            for index, trial in enumerate(pack.trials):
                whole = smaller[trial]
                adapter = read_adapter(directory.trial(whole) / "adapter", prepared.base, prepared.targets)
                pack.load(index, cut(adapter.state, prepared.targets, whole, trial))
            scored = evaluate(pack.base, len(pack.trials), prepared.task, prepared.settings.steps)
            for trial, evaluation in zip(pack.trials, scored, strict=True):
                evaluations[trial.rank].append(evaluation)
    journal.append(
        "cut",
        trials=[trial.id for trial in trials],
        ranks=list(ranks),
        nll=[fmean(one.nll for one in evaluations[rank]) for rank in ranks],
        accuracy=[fmean(one.accuracy for one in evaluations[rank]) for rank in ranks],
        seconds=time.monotonic() - started,
    )
    return journal.events[-1]


def cut(state: State, targets: Sequence[LinearLayer], whole: Trial, to: Trial) -> State:
    """A trial's state at another's smaller rank and scaling: the nearest update of that rank, heads as they are.

    Where a layer has fewer directions than that, the others are 0.
    """
    smaller = dict(state)
    with one_thread():
        for target in targets:
            name_a, name_b = f"{target.name}.lora_A.weight", f"{target.name}.lora_B.weight"
            a, b = truncated(state[name_a], state[name_b], to.rank)
            lacking = to.rank - len(a)
            smaller[name_a] = pad(a, (0, 0, 0, lacking)).float()
            smaller[name_b] = pad(b * (whole.scaling / to.scaling), (0, lacking)).float()
    return smaller
