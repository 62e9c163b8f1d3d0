"""Train ranks one after another, as far as an escalation or a ladder goes; the journal keeps each step.

What a step rests on is kept with it. A run that goes on takes the steps that rest on the same again, without asking
how much memory or time is left now, unless that was what stopped it; an extended one, whose evidence is another, begins
with the first step anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rankwise.compare import escalate, ladder
from rankwise.compare.answer import TestData, judge
from rankwise.compare.choice import Choice, choose
from rankwise.compare.cut import cut_losses
from rankwise.compare.evidence import Evidence, Scale, Step, path_text
from rankwise.compare.journal import Journal, validation_baseline
from rankwise.compare.plan import usable_bytes
from rankwise.compare.prepare import Prepared
from rankwise.compare.scoring import read_stacked, score_trials
from rankwise.compare.training import free_bytes, step_costs, train
from rankwise.compare.under_way import Run
from rankwise.decide.verdict import Margin
from rankwise.fidelity import LADDER
from rankwise.records import StopReason

_TRUST = {"ladder": (LADDER,)}
_NAMES = {"escalate": "escalation", "ladder": "ladder"}  # in the journal, and what users are told


@dataclass(frozen=True)
class Grown:
    """The run as a grid of the ranks that were trained, why there are no more, and the way there in sentences."""

    run: Run
    stopped: StopReason | None
    notes: tuple[str, ...]


def grow(run: Run) -> Grown:
    """Train the ranks to start with and those that follow from them; a grid has all of its ranks to start with."""
    config = run.prepared.config
    if config.strategy == "grid":
        return Grown(run, None, ())
    name = _NAMES[config.strategy]
    grown = run.as_grid(config.first_ranks)
    steps: list[Step] = []
    while True:
        basis = _basis(run.prepared, grown.prepared)
        step = _journaled_step(name, basis, run.journal, config.budget)
        if step is None:
            step = _next_step(run, grown, may_look=not any(earlier.looked for earlier in steps))
            run.journal.append(name, basis=basis, budget=config.budget, **asdict(step))
        steps.append(step)
        path = f"{name}: {path_text(steps)}"
        run.tell(path)
        if step.rank is None:
            # Those of an earlier start with fewer seeds or test examples, or another margin, are looks as well.
            looks = sum(event["looked"] for event in run.journal.of(name)) - step.looked
            return Grown(grown, step.stopped, (path, *_looked(looks), *_TRUST.get(config.strategy, ())))
        following = dict(grown.prepared.following)
        if step.follows:
            following[step.rank] = "alone"
        elif step.rank in following:
            following[step.rank] = "beside"
        grown = grown.as_grid({*grown.prepared.config.ranks, step.rank}, following)


def _looked(times: int) -> list[str]:
    if times == 0:
        return []
    often = "once" if times == 1 else f"{times} times"
    return [
        f"test was looked at {often} on the way, where it did not show that a rank suffices: such a look errs in up to "
        "1 % of cases, on top of the answer"
    ]


def _basis(prepared: Prepared, grown: Prepared) -> dict[str, Any]:
    """What the evidence for a step depends on, of all that a run may be extended with."""
    config = grown.config
    basis = {
        "ranks": list(config.ranks),
        "scaling": config.scalings[0],
        "learning_rates": list(config.learning_rates),
        "seeds": config.seeds,
        "metric": config.metric,
        "keep": config.keep,
        "margin": config.margin,
    }
    of_a_ladder = {
        "among": list(prepared.config.ranks),
        "following": sorted(map(list, grown.following.items())),
        "examples": len(prepared.task.test),
    }
    return basis | (of_a_ladder if prepared.config.strategy == "ladder" else {})


def _journaled_step(name: str, basis: dict[str, Any], journal: Journal, budget: float | None) -> Step | None:
    for event in reversed(journal.of(name)):
        # Runs that were begun before the test examples were counted have no number of them.
        if basis | event["basis"] == basis:
            # Memory, or another budget, is asked again where it was what stopped; what was begun is never taken back.
            if event["stopped"] == "memory" or (event["stopped"] == "budget" and event["budget"] != budget):
                return None
            return Step(tuple(event["found"]), event["rank"], event["stopped"], event["looked"], event["follows"])
    return None


def _next_step(run: Run, grown: Run, *, may_look: bool) -> Step:
    """What `run` does after the ranks of `grown`, which are trained first where they are not yet."""
    prepared, is_ladder = grown.prepared, run.prepared.config.strategy == "ladder"
    # How many trials a pack may have depends on the largest rank, which is a ladder's first.
    costs = step_costs(run.as_grid(run.prepared.config.first_ranks) if is_ladder else grown)
    results = train(grown, costs)
    config = prepared.config.each_scaling[0]
    baseline = validation_baseline(run.journal)
    choice = choose(config, results, baseline.nll)
    evidence = {
        rank: Evidence.of(choice.trained(rank), config.metric) if rank in choice.by_rank else None
        for rank in config.ranks
    }
    chance = baseline.nll if prepared.task.is_instruction else math.log(prepared.task.outcomes)
    scale = Scale(config.metric, Margin(config.keep, config.margin), baseline, chance)
    if is_ladder:
        *smaller, largest = run.prepared.config.ranks
        whole = choice.by_rank.get(largest, ())
        cut = cut_losses(run, whole, smaller) if whole else {}

        def shown_by_test(rank: int) -> bool:
            run.tell(f"asking test about rank {rank}")
            return _suffices_on_test(run, choice, (rank, largest))

        return ladder.next_step(
            run.prepared.config.ranks,
            cut,
            evidence,
            scale,
            alone={rank for rank, follows in prepared.following.items() if follows == "alone"},
            # Where one seed cannot show that a rank suffices, or there are no other rates, there is nothing to save.
            may_follow=len(config.learning_rates) > 1 and config.seeds > 1,
            shown_by_test=shown_by_test if may_look else None,
        )
    taken = sum(len(result.train_nll) for trial, result in results.items() if trial.rank == max(config.ranks))
    budget = run.prepared.config.budget
    room = escalate.Room(
        largest_rank=max(min(target.d_in, target.d_out) for target in prepared.targets),
        costs=list(costs.values()),
        base_bytes=prepared.base.bytes,
        free_bytes=usable_bytes(free_bytes(prepared.base.device)),
        steps=taken,
        seconds_left=None if budget is None else budget - run.journal.seconds,
    )
    return escalate.next_step(evidence, scale, room)


def _suffices_on_test(run: Run, choice: Choice, ranks: Sequence[int]) -> bool:
    """Whether the first of two ranks is shown to suffice beside the other."""
    directory = run.directory
    trials = {rank: choice.by_rank[rank] for rank in ranks}
    score_trials(run, [trial for of_rank in trials.values() for trial in of_rank])
    scores = {
        rank: read_stacked(directory, [directory.trial(trial) for trial in of_rank]) for rank, of_rank in trials.items()
    }
    baseline = read_stacked(directory, [directory.baseline])
    if not all(np.isfinite(one.nll).all() for one in (*scores.values(), baseline)):
        return False
    decision = judge(choice, scores, baseline, TestData.of(run.prepared.task), ladder.LOOK_CONFIDENCE)
    return decision.verdicts[0].verdict == "sufficient"
