"""Train ranks one after another, as far as the escalation goes; the journal keeps each step.

What a step rests on is kept with it. A run that goes on takes the steps that rest on the same again, without asking
how much memory or time is left now; an extended one, whose evidence is another, begins with the first step anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

from rankwise.compare.directory import RunDirectory
from rankwise.compare.escalate import Evidence, Room, Scale, Step, next_step, path_text
from rankwise.compare.journal import Journal
from rankwise.compare.plan import usable_bytes
from rankwise.compare.prepare import Prepared
from rankwise.compare.results import choose
from rankwise.compare.scoring import validation_baseline
from rankwise.compare.training import Planned, free_bytes, step_costs, train
from rankwise.decide.verdict import Margin
from rankwise.train.loop import StepReport


def grow(
    prepared: Prepared,
    directory: RunDirectory,
    journal: Journal,
    observe: Callable[[Planned | StepReport], None],
    tell: Callable[[str], None],
) -> tuple[Prepared, list[Step]]:
    """Train the ranks to start with and those that follow from them; the grid of all these, and the steps."""
    budget = prepared.config.budget
    grown = prepared.as_grid(prepared.config.ranks)
    steps: list[Step] = []
    while True:
        step = _journaled_step(grown, journal, budget) or _take_step(grown, directory, journal, budget, observe, tell)
        steps.append(step)
        tell(f"escalation: {path_text(steps)}")
        if step.rank is None:
            return grown, steps
        grown = grown.as_grid(sorted((*grown.config.ranks, step.rank)))


def _basis(grown: Prepared) -> dict[str, object]:
    """What the evidence for a step depends on, of all that a run may be extended with."""
    config = grown.config
    return {
        "ranks": list(config.ranks),
        "scaling": config.scalings[0],
        "learning_rates": list(config.learning_rates),
        "seeds": config.seeds,
        "metric": config.metric,
        "keep": config.keep,
        "margin": config.margin,
    }


def _journaled_step(grown: Prepared, journal: Journal, budget: float | None) -> Step | None:
    basis = _basis(grown)
    for event in reversed(journal.of("escalation")):
        if event["basis"] == basis:
            # Another budget is asked again where it was what stopped; what was begun is never taken back.
            stands = event["stopped"] != "budget" or event["budget"] == budget
            return Step(tuple(event["found"]), event["rank"], event["stopped"]) if stands else None
    return None


def _take_step(
    grown: Prepared,
    directory: RunDirectory,
    journal: Journal,
    budget: float | None,
    observe: Callable[[Planned | StepReport], None],
    tell: Callable[[str], None],
) -> Step:
    costs = step_costs(grown, journal, tell)
    results = train(grown, directory, journal, costs, observe)
    config = grown.config.each_scaling[0]
    choice = choose(config, results)
    evidence = {
        rank: Evidence.of(choice.trained(rank), config.metric) if rank in choice.by_rank else None
        for rank in config.ranks
    }
    baseline = validation_baseline(journal)
    chance = baseline.nll if grown.task.is_instruction else math.log(grown.task.outcomes)
    scale = Scale(config.metric, Margin(config.keep, config.margin), baseline, chance)
    taken = sum(len(result.train_nll) for trial, result in results.items() if trial.rank == max(config.ranks))
    room = Room(
        largest_rank=max(min(target.d_in, target.d_out) for target in grown.targets),
        costs=list(costs.values()),
        base_bytes=grown.base.bytes,
        free_bytes=usable_bytes(free_bytes(grown.base.device)),
        steps=taken,
        seconds_left=None if budget is None else budget - journal.seconds,
    )
    step = next_step(evidence, scale, room)
    journal.append("escalation", basis=_basis(grown), budget=budget, **asdict(step))
    return step
