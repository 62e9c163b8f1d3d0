"""One comparison from its configuration to its table: prepare, plan, train, score, summarise.

Each step asks the journal what is done already, so a run that was killed, one that is extended, and
one that is new take the same way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from rankwise.compare.config import ComparisonConfig
from rankwise.compare.directory import RunDirectory, write_json
from rankwise.compare.journal import Journal
from rankwise.compare.plan import divide, plan_packs
from rankwise.compare.prepare import Prepared, describe, disk_bytes, prepare
from rankwise.compare.results import TestScores, choose_learning_rates, experiment, notes_on_training
from rankwise.compare.schedule import most_rates, next_leg, steps_per_seed
from rankwise.compare.training import Planned, pack_size, train
from rankwise.errors import RunError, UserError
from rankwise.lora.attach import attached
from rankwise.lora.peft_io import read_adapter
from rankwise.records import Baseline, ComparisonPlan, RankComparison, Trial
from rankwise.train.baseline import fit_baseline
from rankwise.train.cost import StepCost, measure_costs
from rankwise.train.loop import StepReport, score


@dataclass(frozen=True)
class Stage:
    """The comparison turns to something else; `text` says to what."""

    text: str


Observer = Callable[[Stage | Planned | StepReport], None]


def _ignore(event: object) -> None:
    return None


def run_rank_comparison(
    config: ComparisonConfig, *, run: Path | str | None = None, resume: bool = False, observe: Observer = _ignore
) -> RankComparison:
    """Train every rank, learning rate and seed; choose each rank's learning rate on validation; score test.

    `run` is the directory that everything is kept in, a new one under `runs/` by default. `resume` goes on
    with a run that was interrupted, or extends one. `observe` is told how it goes.

    Raises `UserError` for input that cannot be used, `RunError` for a run that cannot go on.
    """
    directory = RunDirectory(Path(run) if run is not None else new_run())
    directory.check_free(resume=resume)
    with _memory_told():
        prepared = prepare(config, lambda text: observe(Stage(text)))
        if not resume:
            directory.check_space(disk_bytes(prepared))
        with directory.opened(describe(prepared), prepared.task.test, resume=resume) as journal, _resumable(directory):
            return _compare(prepared, directory, journal, observe)


def _compare(prepared: Prepared, directory: RunDirectory, journal: Journal, observe: Observer) -> RankComparison:
    config = prepared.config
    costs = _costs(prepared, journal, observe)
    baseline = _baseline(prepared, directory, journal, observe)
    results = train(prepared, directory, journal, costs, observe)
    chosen = choose_learning_rates(results, config)
    if not chosen:
        raise RunError(
            "at every learning rate of every rank a seed diverged; add lower --learning-rates and go on with --resume"
        )
    chosen_trials = [config.trial(rank, rate, seed) for rank, rate in chosen.items() for seed in config.seed_numbers]
    _score(prepared, directory, journal, chosen_trials, observe)
    best = min(chosen_trials, key=lambda trial: results[trial].validation_nll)
    directory.publish_adapter(best)

    experiments = []
    for rank, rate in chosen.items():
        trials = [config.trial(rank, rate, seed) for seed in config.seed_numbers]
        scores = [directory.read_scores(directory.trial(trial)) for trial in trials]
        experiments.append(
            experiment(
                trials[0],
                TestScores(*(np.stack([one[column].to_numpy() for one in scores]) for column in ("nll", "correct"))),
                prepared.task.test.groups,
                trainable_params=prepared.params(rank).total,
                training_time_seconds=costs[rank].seconds * prepared.settings.steps,
                peak_memory_bytes=costs[rank].peak_bytes,
            )
        )
    comparison = RankComparison(
        run=directory.path,
        model=config.model,
        task=prepared.task.name,
        experiments=tuple(experiments),
        baseline=baseline,
        wall_seconds=sum(event.get("seconds", 0.0) for event in journal.events),
        adapter=directory.adapter,
        notes=(*prepared.notes, *notes_on_training(results, chosen, config)),
    )
    write_json(directory.path / "experiments.json", comparison.to_dict())
    return comparison


@contextmanager
def _memory_told() -> Iterator[None]:
    """Out of memory in one line, on whatever device."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On a CPU torch has no class of its own for this.
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not re.search("allocate memory|not enough memory", str(error)):
            raise
        raise RunError(
            "out of memory: go on with a smaller --pack-size and --resume; if no pack had more than one trial, "
            "start again with a smaller --batch-size or --gradient-checkpointing"
        ) from error


@contextmanager
def _resumable(directory: RunDirectory) -> Iterator[None]:
    """What goes wrong with the run's files, in one line; the run is left as it is and can go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{directory.path} could not be written: {reason}; then go on with --resume") from error
    except UserError as error:
        raise RunError(f"{error}; restore it from a copy, or start a new run") from error


def plan_rank_comparison(config: ComparisonConfig, *, observe: Observer = _ignore) -> ComparisonPlan:
    """What a comparison would train and what that takes, from a few timed steps of each rank; nothing is kept."""
    with _memory_told():
        prepared = prepare(config, lambda text: observe(Stage(text)))
        observe(Stage("timing a few steps of each rank"))
        costs = {cost.rank: cost for cost in measure_costs(*prepared.cost_arguments)}
    rungs = prepared.settings.rungs
    leg = next_leg(config, rungs, {})
    assert leg is not None
    packs = plan_packs(leg, pack_size(prepared, costs), first=0)
    peaks = [cost.peak_bytes for cost in costs.values() if cost.peak_bytes is not None]
    peak = prepared.base.bytes + max(
        sum((costs[trial.rank].peak_bytes or 0) - prepared.base.bytes for trial in pack.trials) for pack in packs
    )
    a_step = config.seeds * sum(cost.seconds for cost in costs.values())  # of every rank and seed
    return ComparisonPlan(
        trials=len(leg.trials),
        packs=len(packs),
        steps=prepared.settings.steps,
        peak_memory_bytes=peak if peaks else None,
        disk_bytes=disk_bytes(prepared),
        training_seconds=a_step * steps_per_seed(len(config.learning_rates), rungs),
        training_seconds_at_most=a_step * steps_per_seed(most_rates(config), rungs),
        notes=prepared.notes,
    )


def _costs(prepared: Prepared, journal: Journal, observe: Observer) -> dict[int, StepCost]:
    """What a step of each rank costs, measured for all ranks together so that they can be compared."""
    for event in reversed(journal.of("costs")):
        costs = {cost["rank"]: StepCost(**cost) for cost in event["ranks"]}
        if costs.keys() == set(prepared.config.ranks):
            return costs
    observe(Stage("timing a few steps of each rank alone"))
    started = time.monotonic()
    measured = measure_costs(*prepared.cost_arguments)
    journal.append("costs", ranks=[asdict(cost) for cost in measured], seconds=time.monotonic() - started)
    return {cost.rank: cost for cost in measured}


def _baseline(prepared: Prepared, directory: RunDirectory, journal: Journal, observe: Observer) -> Baseline:
    test = prepared.task.test
    for event in journal.of("baseline"):
        if event["examples"] == len(test):
            return Baseline(accuracy=event["accuracy"], nll=event["nll"])
    observe(Stage("rank 0: fitting a head on the frozen base"))
    started = time.monotonic()
    scores = fit_baseline(prepared.base, prepared.task, prepared.config.first_seed)
    directory.write_scores(directory.baseline, test.example_ids, scores.nll, scores.correct)
    baseline = Baseline(float(scores.correct.mean()), float(scores.nll.mean(dtype=np.float64)))
    journal.append("baseline", **asdict(baseline), examples=len(test), seconds=time.monotonic() - started)
    return baseline


def _score(
    prepared: Prepared, directory: RunDirectory, journal: Journal, trials: Sequence[Trial], observe: Observer
) -> None:
    """Score the chosen trials on test, in packs of one seed; nothing that was not chosen touches the test split."""
    test = prepared.task.test
    scored = {trial for event in journal.of("scored") if event["examples"] == len(test) for trial in event["trials"]}
    for members in divide(trials, prepared.most_trials):
        missing = [trial for trial in members if trial.id not in scored]
        if not missing:
            continue
        # All of the pack's trials, so that the last bits do not depend on where an earlier start ended.
        observe(Stage(f"scoring seed {members[0].seed} on {len(test):,} test examples"))
        started = time.monotonic()
        with attached(prepared.base, members, prepared.targets) as pack:
            for index, trial in enumerate(pack.trials):
                adapter = read_adapter(directory.trial(trial) / "adapter", prepared.base, prepared.targets)
                pack.load(index, adapter.state)
            nll, correct = score(pack, test, prepared.task.pad_token_id)
        for index, trial in enumerate(pack.trials):
            if trial in missing:
                directory.write_scores(directory.trial(trial), test.example_ids, nll[index], correct[index])
        ids = [trial.id for trial in missing]
        journal.append("scored", trials=ids, examples=len(test), seconds=time.monotonic() - started)


def new_run() -> Path:
    return Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
