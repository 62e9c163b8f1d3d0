"""Train what the schedule asks for, leg by leg; the journal knows what is planned and what is done.

A leg is journaled with its packs before they train, and a run that goes on trains the journaled packs first.
Then every later leg follows from the same results, so the numbers do not depend on where the run was killed.
Where memory is short for a pack, what is left of its leg is planned anew in packs of half its size. A backend trains
the packs, and tells of them in any order: nothing here may depend on it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.compare.backends import Job, PackOutOfMemoryError, WorkerLost
from rankwise.compare.directory import RunDirectory
from rankwise.compare.journal import Event, Journal, validation_baseline
from rankwise.compare.observer import Planned
from rankwise.compare.plan import PlannedPack, plan_packs, trials_that_fit
from rankwise.compare.prepare import Prepared
from rankwise.compare.schedule import Leg, Schedule
from rankwise.compare.under_way import Run
from rankwise.durable import digest
from rankwise.errors import UserError
from rankwise.lora.attach import State
from rankwise.lora.peft_io import read_adapter, write_adapter
from rankwise.machine import available_bytes
from rankwise.memory.pack import simulate_pack
from rankwise.records import Trial, TrialResult
from rankwise.train.checkpoint import split_checkpoint
from rankwise.train.cost import StepCost, measure_costs
from rankwise.train.heap import give_back_freed_memory
from rankwise.train.loop import TrainedTrial


def train(run: Run, costs: dict[int, StepCost]) -> dict[Trial, TrialResult]:
    """Train all legs that are not trained yet; the results of all trials, those that were dropped too."""
    prepared, journal, settings = run.prepared, run.journal, run.prepared.settings
    for event in journal.of("trained"):
        _hand_over(run.directory, event)
    results = run.directory.results(journal)
    size = _journaled_size(prepared, journal, costs)
    schedule = Schedule(prepared.config, settings.rungs, validation_baseline(journal).nll, prepared.following)
    while packs := _packs(run, schedule, results, size):
        out = schedule.dropped(results)
        run.observe(Planned(_joined(packs), settings.steps, settings.examples_per_step, out))
        try:
            for trained in _trained(run, packs):
                results |= trained
        except PackOutOfMemoryError as error:
            if len(error.pack.trials) == 1:
                raise error.cause from None
            size = -(-len(error.pack.trials) // 2)
            journal.append("out of memory", pack=error.pack.id, size=size)
        else:
            continue
        # Only now is the error gone, and with it what the pack held.
        gc.collect()
        give_back_freed_memory()
    return schedule.settled(results)


def step_costs(run: Run) -> dict[int, StepCost]:
    """What a step of each rank costs, measured for all ranks together so that they can be compared."""
    for event in reversed(run.journal.of("costs")):
        costs = {cost["rank"]: StepCost(**cost) for cost in event["ranks"]}
        if costs.keys() == set(run.prepared.config.ranks):
            return costs
    run.tell("timing a few steps of each rank alone")
    started = time.monotonic()
    measured = measure_costs(*run.prepared.cost_arguments)
    run.journal.append("costs", ranks=[asdict(cost) for cost in measured], seconds=time.monotonic() - started)
    return {cost.rank: cost for cost in measured}


def pack_size(prepared: Prepared, costs: dict[int, StepCost]) -> int:
    """How many trials a pack has at most: as was asked for, or what fits into the memory that is free."""
    if prepared.config.pack_size is not None:
        return prepared.most_trials
    peaks = [cost.peak_bytes - prepared.base.bytes for cost in costs.values() if cost.peak_bytes is not None]
    takes = max([*peaks, *_simulated_bytes(prepared)], default=None)
    if takes is None:
        return 1
    return min(trials_that_fit(free_bytes=free_bytes(prepared.base.device), trial_bytes=takes), prepared.most_trials)


def _simulated_bytes(prepared: Prepared) -> list[int]:
    """What one more trial of the largest rank takes at the longest batch; nothing where it cannot be simulated."""
    if not prepared.packable or prepared.base.quantize != "none":
        return []
    trials = [prepared.config.trial(max(prepared.config.ranks), 1e-3, seed) for seed in (0, 1)]
    length = int(prepared.task.train.input_ids.lengths.max())
    cuda = prepared.base.device.type == "cuda"
    try:
        one, two = (
            simulate_pack(prepared.base, trials[:count], prepared.targets, prepared.settings, length, cuda=cuda)
            for count in (1, 2)
        )
    # A model's code may do anything with tensors that have no values; what was measured then stands alone.
    except Exception:
        return []
    return [two.peak().bytes - one.peak().bytes]


def free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        give_back_freed_memory()
        return available_bytes()
    # What torch has reserved and does not use is free for its next pack.
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _journaled_size(prepared: Prepared, journal: Journal, costs: dict[int, StepCost]) -> int:
    """The pack size that was found when the run came to this largest rank: less memory may be free at a later start."""
    most = _most_trials(prepared, journal)
    if prepared.config.pack_size is not None:
        return most
    ranks = list(prepared.config.ranks)
    for event in journal.of("pack size"):
        if max(event["ranks"]) == max(ranks):
            return min(most, int(event["size"]))
    size = pack_size(prepared, costs)
    journal.append("pack size", ranks=ranks, size=size)
    return min(most, size)


def _most_trials(prepared: Prepared, journal: Journal) -> int:
    """How many trials a pack may have: what is asked for, and no more than half of one that memory was short for."""
    return min([prepared.most_trials, *(int(event["size"]) for event in journal.of("out of memory"))])


def trials_at_once(prepared: Prepared, journal: Journal) -> int:
    """How many trials are scored together: no more than memory was found to have room for when they were trained."""
    found = journal.of("pack size")[-1:] if prepared.config.pack_size is None else []
    return min([_most_trials(prepared, journal), *(int(event["size"]) for event in found)])


def _packs(run: Run, schedule: Schedule, results: dict[Trial, TrialResult], size: int) -> list[PlannedPack]:
    """The packs that come next: those that are journaled and not trained, else those of the next leg."""
    directory, journal = run.directory, run.journal
    untrained = _untrained(journal)
    if untrained and max(len(pack.trials) for pack in untrained) <= _most_trials(run.prepared, journal):
        return untrained
    if untrained:
        # They did not fit, or smaller ones are asked for now.
        leg: Leg | None = _joined(untrained)
    else:
        leg = schedule.next_leg(results, [trial for trial in results if directory.checkpoint(trial.id).exists()])
    needed = schedule.running(results).union(leg.trials if leg else ())
    # Before the leg is journaled: whether a trial's state is there must not depend on when the run was killed.
    directory.remove_checkpoints(keep={trial.id for trial in needed})
    if leg is None:
        return []
    packs = plan_packs(leg, size, first=sum(len(event["packs"]) for event in journal.of("plan")))
    event = [{"pack": pack.id, "trials": [asdict(trial) for trial in pack.trials]} for pack in packs]
    journal.append("plan", start=leg.start, stop=leg.stop, packs=event)
    return packs


def void_plans_taken_back(run: Run) -> None:
    """Journal that packs will not be trained which an extension planned, where the run goes on without their trials.

    Rates are no matter: trials of others are trained and left out.
    """
    config, planned = run.prepared.config, _untrained(run.journal)
    rslora = {scaling == "rslora" for scaling in config.scalings}
    if all(
        trial.seed in config.seed_numbers
        and trial.use_rslora in rslora
        # An escalation goes to ranks that nobody named.
        and (trial.rank in config.ranks or config.strategy == "escalate")
        for pack in planned
        for trial in pack.trials
    ):
        return
    run.journal.append("taken back", packs=[pack.id for pack in planned])


def _untrained(journal: Journal) -> list[PlannedPack]:
    """The packs of the last plan that are neither trained nor taken back."""
    done = {event["pack"] for event in journal.of("trained")}
    done |= {pack for event in journal.of("taken back") for pack in event["packs"]}
    return [
        PlannedPack(pack["pack"], tuple(Trial(**trial) for trial in pack["trials"]), plan["start"], plan["stop"])
        for plan in journal.of("plan")[-1:]
        for pack in plan["packs"]
        if pack["pack"] not in done
    ]


def _joined(packs: Sequence[PlannedPack]) -> Leg:
    return Leg(tuple(trial for pack in packs for trial in pack.trials), packs[0].start, packs[0].stop)


def _trained(run: Run, packs: Sequence[PlannedPack]) -> Iterator[dict[Trial, TrialResult]]:
    """The results of one pack after another, which are kept by then."""
    since = time.monotonic()
    with closing(run.backend.train([_job(run.directory, pack) for pack in packs], run.observe)) as told:
        for event in told:
            if isinstance(event, WorkerLost):
                run.journal.append("worker lost", pack=event.pack.id, reason=event.reason)
                continue
            for one in event.trained:
                _keep(run, one)
            statuses = {one.result.trial.id: one.result.status for one in event.trained}
            states = {one.result.trial.id: one.state for one in event.trained if one.result.status == "trained"}
            now = time.monotonic()
            journaled = run.journal.append(
                "trained",
                pack=event.pack.id,
                status=statuses,
                sha256={trial: state_digest(state) for trial, state in states.items()},
                # What the run took longer for it; side by side, packs take longer than that.
                seconds=now - since,
                pack_seconds=event.seconds,
            )
            since = now
            _hand_over(run.directory, journaled)
            yield {one.result.trial: one.result for one in event.trained}


def _job(directory: RunDirectory, pack: PlannedPack) -> Job:
    states = tuple(directory.checkpoint(trial.id) for trial in pack.trials)
    # One that was removed by hand, because it was damaged, leaves the others to begin with it.
    begin = states if all(state.exists() for state in states) else ()
    return Job(pack, begin, directory.checkpoint(pack.id))


def _hand_over(directory: RunDirectory, trained: Event) -> None:
    """Give the trials of a trained pack that may go on a state each; after a kill, what it left of this."""
    checkpoint = directory.checkpoint(trained["pack"])
    if checkpoint.exists():
        may_go_on = [trial for trial, status in trained["status"].items() if status == "dropped"]
        split_checkpoint(checkpoint, {trial: directory.checkpoint(trial) for trial in may_go_on})
        checkpoint.unlink()


def read_trained(run: Run, trial: Trial) -> State:
    """What a trial trained. Raises `UserError` where its adapter is not what was written."""
    written = {name: known for event in run.journal.of("trained") for name, known in event["sha256"].items()}
    return read_written(
        run.directory.trial(trial) / "adapter", run.prepared.base, run.prepared.targets, written[trial.id]
    )


def read_written(adapter: Path, base: BaseModel, targets: Sequence[LinearLayer], sha256: str) -> State:
    """An adapter that was written with this digest. Raises `UserError` where it is another now."""
    state = read_adapter(adapter, base, targets).state
    if state_digest(state) != sha256:
        raise UserError(f"{adapter / SAFETENSORS_WEIGHTS_NAME} is damaged: its tensors are not those that were written")
    return state


def state_digest(state: State) -> str:
    return digest({name: tensor.contiguous().numpy().data for name, tensor in state.items()})


def _keep(run: Run, trained: TrainedTrial) -> None:
    prepared, directory, trial = run.prepared, run.directory, trained.result.trial
    # The parts must sum to the number that is reported.
    assert sum(tensor.numel() for tensor in trained.state.values()) == prepared.params(trial.rank).total
    directory.write_result(trained.result)
    if trained.result.status == "trained":
        write_adapter(directory.trial(trial) / "adapter", prepared.base, trial, trained.state, prepared.targets)
