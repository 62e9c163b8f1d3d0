"""What a comparison would take, before it begins."""

from __future__ import annotations

import math

from rankwise.compare.config import ComparisonConfig
from rankwise.compare.observer import Observer, ignore, telling
from rankwise.compare.plan import plan_packs
from rankwise.compare.prepare import disk_bytes, prepare
from rankwise.compare.schedule import Schedule, fewest_rates, most_rates, steps_per_seed
from rankwise.compare.training import pack_size
from rankwise.records import ComparisonPlan
from rankwise.train.cost import measure_costs, measure_pack
from rankwise.train.failure import device_failure_told, out_of_memory_told

_HINT = "plan with a smaller --pack-size or --batch-size, or with --gradient-checkpointing"


def plan_rank_comparison(config: ComparisonConfig, *, observe: Observer = ignore) -> ComparisonPlan:
    """What a comparison would train and what that takes, from a few timed steps of each rank and of the first pack."""
    with device_failure_told("run this again once it works"), out_of_memory_told(_HINT):
        prepared = prepare(config.each_base[0], telling(observe))
        telling(observe)("timing a few steps of each rank, and of a pack")
        first = prepared.as_grid(config.first_ranks)
        base, task, trials, targets, settings = first.cost_arguments
        costs = {cost.rank: cost for cost in measure_costs(base, task, trials, targets, settings)}
        rungs = prepared.settings.rungs
        leg = Schedule(first.config, rungs, rank_0_nll=math.inf).next_leg({})
        assert leg is not None
        packs = plan_packs(leg, pack_size(first, costs), first=0)
        together = measure_pack(base, task, packs[0].trials, targets, settings)
        saved = together / sum(costs[trial.rank].seconds for trial in packs[0].trials)
    peaks = [cost.peak_bytes for cost in costs.values() if cost.peak_bytes is not None]
    of_packs = [sum((costs[trial.rank].peak_bytes or 0) - base.bytes for trial in pack.trials) for pack in packs]
    of_every_curve = len(config.scalings) * config.seeds * saved * sum(cost.seconds for cost in costs.values())
    more = [f"bases: these figures are of {base.stored_as}, the first"] if len(config.each_base) > 1 else []
    return ComparisonPlan(
        trials=len(leg.trials),
        packs=len(packs),
        steps=prepared.settings.steps,
        peak_memory_bytes=base.bytes + base.blocks_bytes + max(of_packs) if peaks else None,
        disk_bytes=disk_bytes(prepared),
        training_seconds=of_every_curve * steps_per_seed(fewest_rates(config), rungs),
        training_seconds_at_most=of_every_curve * most_rates(config) * rungs[-1],
        notes=(*prepared.notes, *_note_on_start(config), *_note_on_rates(config), *more),
    )


def _note_on_rates(config: ComparisonConfig) -> list[str]:
    if len(config.learning_rates) != 2:
        return []
    return ["learning rates: of two the better one is at an edge, so a third will be tried, which is counted"]


def _note_on_start(config: ComparisonConfig) -> list[str]:
    if config.strategy == "grid":
        return []
    start = " and ".join(map(str, config.first_ranks))
    return [
        f"strategy {config.strategy}: these figures are of rank {start} to start with; others depend on the results"
    ]
