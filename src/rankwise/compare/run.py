"""One comparison from its configuration to its table: prepare, plan, train, score, summarise.

Each step asks the journal what is done already, so a run that was killed, one that is extended, and
one that is new take the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from rankwise.compare.answer import Answer, Taken, TestData, answer
from rankwise.compare.backends import backend_for, cluster
from rankwise.compare.choice import Choice, choose
from rankwise.compare.config import Base, ComparisonConfig
from rankwise.compare.directory import RETAINED, RunDirectory, write_json
from rankwise.compare.forgetting import forgotten
from rankwise.compare.full import fine_tune_in_full
from rankwise.compare.growth import grow
from rankwise.compare.journal import Journal, validation_baseline
from rankwise.compare.observer import Observer, Planned, Told, ignore, telling
from rankwise.compare.page import write_page
from rankwise.compare.prepare import Prepared, describe, disk_bytes, prepare
from rankwise.compare.reporting import Reporting
from rankwise.compare.scoring import read_stacked, score_baseline, score_trials
from rankwise.compare.trackers import check_installed
from rankwise.compare.training import step_costs, train, void_plans_taken_back
from rankwise.compare.under_way import Run
from rankwise.errors import RunError, UserError, reason_of
from rankwise.records import Baseline, RankComparison, Recommendation, Scores, StopReason, Verdict
from rankwise.train.cost import StepCost
from rankwise.train.failure import device_failure_told, out_of_memory_told
from rankwise.train.loop import StepReport

# With another value of any of these, a decision is another look.
_LOOKS = ("ranks", "learning_rates", "seeds", "examples", "metric", "keep", "margin", "scaling")


def run_rank_comparison(
    config: ComparisonConfig, *, run: Path | str | None = None, resume: bool = False, observe: Observer = ignore
) -> RankComparison:
    """Train every rank, learning rate and seed; choose each rank's learning rate on validation; score test.

    `run` is the directory that everything is kept in, a new one under `runs/` by default. `resume` goes on
    with a run that was interrupted, or extends one. `observe` is told how it goes. With several bases, each after the
    first is a run of its own in `run/bases/`.

    Raises `UserError` for input that cannot be used, `RunError` for a run that cannot go on.
    """
    check_installed(config.report_to)
    path = Path(run) if run is not None else new_run()
    first, *others = config.each_base
    with cluster(config):
        base = config.bases[0] if config.bases else None
        comparison = _run_over_one_base(
            first, RunDirectory(path), base, bases=config.bases, resume=resume, observe=observe
        )
        if others:
            comparison = _over_the_others(config, comparison, others, observe)
    with _resumable(RunDirectory(path)):
        # A run over several bases has not ended before they all have.
        _write_answer(comparison)
        write_page(path)
    return comparison


def _over_the_others(
    config: ComparisonConfig, comparison: RankComparison, others: Sequence[ComparisonConfig], observe: Observer
) -> RankComparison:
    over = []
    for base, other in zip((config.bases or ())[1:], others, strict=True):
        directory = RunDirectory(comparison.run / "bases" / base)
        begun = (directory.path / "comparison.json").is_file()
        over.append(_run_over_one_base(other, directory, base, bases=None, resume=begun, observe=observe))
        with _resumable(directory):
            _write_answer(over[-1])
    notes = [over_another(one, comparison, f"over {one.base}") for one in over]
    return replace(comparison, over=tuple(over), notes=(*comparison.notes, *notes))


def _write_answer(comparison: RankComparison) -> None:
    document = comparison.to_dict()
    write_json(comparison.run / "recommendation.json", document["recommendation"])
    write_json(comparison.run / "experiments.json", document)


def _run_over_one_base(
    config: ComparisonConfig,
    directory: RunDirectory,
    base: Base | None,
    *,
    bases: tuple[Base, ...] | None,
    resume: bool,
    observe: Observer,
) -> RankComparison:
    """`base` is which of several it is; `bases` are all, which are kept where the first one's options are."""
    directory.check_free(resume=resume)
    with device_failure_told("go on with --resume once it works again"), _memory_told():
        prepared = prepare(config, telling(observe))
        stored = prepared.base.stored_as
        if base not in (None, stored):
            raise UserError(f"bases: the weights of {config.model} are stored in {stored} already; leave {base} out")
        if not resume:
            directory.check_space(disk_bytes(prepared))
        with (
            directory.opened(describe(prepared) | {"bases": bases}, prepared.task.test, resume=resume) as journal,
            closing(_reporting(prepared, directory, journal)) as reporting,
            _resumable(directory),
            closing(backend_for(prepared)) as backend,
        ):
            run = Run(prepared, directory, journal, backend, _told(observe, reporting))
            comparison = _compare(run, reporting)
            reporting.conclude(comparison)
            return comparison


def _reporting(prepared: Prepared, directory: RunDirectory, journal: Journal) -> Reporting:
    return Reporting(
        prepared.config.report_to,
        directory,
        journal,
        shared={"model": prepared.config.model, "base": prepared.base.stored_as, "task": prepared.task.name},
        params=lambda trial: {"trainable_params": prepared.params(trial.rank).total},
    )


def _told(observe: Observer, reporting: Reporting) -> Observer:
    """`observe`, and the trackers with it."""

    def both(event: Told) -> None:
        try:
            observe(event)
        except OSError as error:
            # Else it would be told as one of the run's files.
            raise RunError(f"the observer failed ({reason_of(error)}); mend it, then go on with --resume") from error
        if isinstance(event, StepReport):
            reporting.step(event)
        elif isinstance(event, Planned):
            reporting.leg(event)

    return both


def _compare(run: Run, reporting: Reporting) -> RankComparison:
    _journal_versions(run)
    void_plans_taken_back(run)
    baseline = score_baseline(run)
    grown = grow(run)
    run = grown.run
    prepared, directory, journal = run.prepared, run.directory, run.journal
    costs = step_costs(run)
    results = train(run, costs)
    reporting.settle(results)
    rank_0_nll = validation_baseline(journal).nll
    named = replace(prepared.config, target_modules=prepared.target_modules)
    choices = [choose(one, results, rank_0_nll) for one in named.each_scaling]
    score_trials(run, [trial for choice in choices for trial in choice.trials])
    full, notes_on_full = fine_tune_in_full(run)
    retained = None if prepared.task.retained is None else read_stacked(directory, [directory.baseline], RETAINED)
    first, *others = (_answered(run, choice, baseline, retained, costs, grown.stopped) for choice in choices)
    _publish(run, choices[0], first.recommendation)
    return RankComparison(
        run=directory.path,
        model=prepared.config.model,
        base=prepared.base.stored_as,
        task=prepared.task.name,
        accuracy_of=prepared.task.accuracy_of,
        experiments=tuple(row for one in (first, *others) for row in one.experiments),
        baseline=Baseline(
            accuracy=float(baseline.correct.mean(dtype=np.float64)),
            nll=float(baseline.nll.mean(dtype=np.float64)),
            retained_nll=None if retained is None else float(retained.nll.mean(dtype=np.float64)),
        ),
        recommendation=first.recommendation,
        alternatives=tuple(other.recommendation for other in others),
        wall_seconds=journal.seconds,
        adapter=directory.adapter,
        notes=(
            *prepared.notes,
            *grown.notes,
            *first.notes,
            *(note for one, other in zip(choices[1:], others, strict=True) for note in _compared(one, other, first)),
            *notes_on_full,
            *_notes_on_looks(journal),
            *_notes_on_versions(journal),
        ),
        full=full,
    )


def _answered(
    run: Run,
    choice: Choice,
    baseline: Scores,
    retained: Scores | None,
    costs: dict[int, StepCost],
    stopped: StopReason | None,
) -> Answer:
    """The answer under one scaling; `retained` are rank 0's scores of the retained texts, if there are any."""
    task, directory = run.prepared.task, run.directory
    paths = {rank: [directory.trial(trial) for trial in trials] for rank, trials in choice.by_rank.items()}
    scores = {rank: read_stacked(directory, of_rank) for rank, of_rank in paths.items()}
    forgets = {}
    if retained is not None and task.retained is not None:
        forgets = {
            rank: forgotten(retained, read_stacked(directory, of_rank, RETAINED), task.retained.groups)
            for rank, of_rank in paths.items()
        }
    taken, held = _taken(run.prepared, costs), _held(run.prepared)
    return answer(choice, scores, baseline, TestData.of(task), taken, held, stopped, forgets)


def _taken(prepared: Prepared, costs: dict[int, StepCost]) -> dict[int, Taken]:
    return {
        rank: Taken(prepared.params(rank).total, cost.seconds * prepared.settings.steps, cost.peak_bytes)
        for rank, cost in costs.items()
    }


def _held(prepared: Prepared) -> str:
    """What was trained, which is what the answer holds for."""
    settings = prepared.settings
    of_step = f"{settings.steps:,} steps of {settings.examples_per_step}"
    return f"{of_step} of the {len(prepared.task.train):,} training examples"


def _publish(run: Run, choice: Choice, recommendation: Recommendation) -> None:
    """Journal the decision and copy the best adapter of the recommended rank, or of all where there is none."""
    config = run.prepared.config
    looked_at = {
        "ranks": list(choice.by_rank),
        "learning_rates": list(config.learning_rates),
        "seeds": config.seeds,
        "examples": len(run.prepared.task.test),
        "metric": config.metric,
        "keep": config.keep,
        "margin": config.margin,
        "scaling": choice.config.scalings[0],
        "status": recommendation.status,
        "rank": recommendation.rank,
    }
    decided = run.journal.of("decided")
    if not decided or decided[-1] != {"event": "decided", **looked_at}:
        run.journal.append("decided", **looked_at)
    run.directory.publish_adapter(choice.best(recommendation.rank))


def _compared(choice: Choice, other: Answer, first: Answer) -> list[str]:
    """What a further scaling says, its own notes and whether the conclusion flips."""
    scaling = choice.config.scalings[0]
    return [
        over_another(other, first, scaling),
        *(f"{scaling}: {note}" for note in other.notes if note not in first.notes),
    ]


def over_another(other: Answer | RankComparison, mine: Answer | RankComparison, what: str) -> str:
    """Whether the conclusion flips with another scaling or base: whether a rank suffices for one and underfits for one.

    That one of them cannot tell is no contradiction.
    """
    its = other.recommendation
    there, here = _verdicts(other), _verdicts(mine)
    if any({there[rank], here[rank]} == {"sufficient", "underfits"} for rank in there.keys() & here.keys()):
        conclusion = "flips"
    elif (its.status, its.rank) == (mine.recommendation.status, mine.recommendation.rank):
        conclusion = "is the same"
    else:
        conclusion = "is another, though nothing shown contradicts this one"
    rank = "no rank" if its.rank is None else f"r={its.rank}"
    return f"{what}: the conclusion {conclusion}: {its.status}, {rank}; {its.reason}"


def _verdicts(answer: Answer | RankComparison) -> dict[int, Verdict]:
    """Of the first scaling, whose rows come first, without that on the reference, which is held against itself."""
    verdicts = {row.rank: row.verdict for row in reversed(answer.experiments)}
    reference = max((rank for rank, verdict in verdicts.items() if verdict == "sufficient"), default=None)
    return {rank: verdict for rank, verdict in verdicts.items() if rank != reference}


def _notes_on_looks(journal: Journal) -> list[str]:
    decided = journal.of("decided")
    # A run that was begun before all of them were journaled has the last decision's.
    looks = {str([event.get(name, decided[-1][name]) for name in _LOOKS]) for event in decided}
    if len(looks) == 1:
        return []
    return [
        f"the comparison was decided {len(looks)} times, with more data or by another rule: each look errs in up to "
        "5 % of cases, so together they err more often"
    ]


def _journal_versions(run: Run) -> None:
    """Those of this start, where they are others than before; comparison.json has the first ones."""
    now = describe(run.prepared)["versions"]
    if [event["versions"] for event in run.journal.of("versions")[-1:]] != [now]:
        run.journal.append("versions", versions=now)


def _notes_on_versions(journal: Journal) -> list[str]:
    found: dict[str, dict[str, None]] = {}  # in the order of starts, each once
    for event in journal.of("versions"):
        for name, version in event["versions"].items():
            found.setdefault(name, {})[version] = None
    changed = [f"{name} {', '.join(versions)}" for name, versions in found.items() if len(versions) > 1]
    if not changed:
        return []
    return [f"the run went on under other versions ({'; '.join(changed)}), whose numbers may differ"]


def _memory_told() -> AbstractContextManager[None]:
    return out_of_memory_told(
        "go on with a smaller --pack-size and --resume; if no pack had more than one trial, "
        "start again with a smaller --batch-size or --gradient-checkpointing"
    )


@contextmanager
def _resumable(directory: RunDirectory) -> Iterator[None]:
    """What goes wrong with the run's files, in one line; the run is left as it is and can go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{directory.path} could not be written ({reason_of(error)}); mend that, then go on with --resume"
        ) from error
    except UserError as error:
        raise RunError(f"{error}; restore it from a copy, or start a new run") from error


def new_run() -> Path:
    # To the microsecond: a batch of jobs starts in one second.
    return Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
