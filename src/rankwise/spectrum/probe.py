"""Where to look for a rank before a comparison: what a short warm-up shows of it.

The named rank is read off an update, not off a gradient. Two warm-ups of a large rank train on a half of the examples
each, from A of their own; the directions that both updates have are the task's, the others noise of half the examples.
The smallest rank that keeps 95 % of that confirmed energy, to the nearest power of two, is named. Measured on 24
tasks of planted rank 2, 4, 8 and 16 (benchmarks/validity/plants.py, 1,024 examples, batches of 16, learning rate 0.01)
it named the planted rank in 11 and its neighbour in 13. The gradient's own confirmed spectrum hardly tells ranks apart:
at 95 % it said 7 to 11 for rank 2, and 10 to 16 for 4, 8 and 16 alike, since what multiplies the needed update there,
the curvature and the inputs' covariance, has a spectrum of its own; Adam, along a path, divides much of that out. The
gradients are shown beside it, at the start and on the way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from rankwise.base.shapes import LinearLayer
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.prepare import Prepared, Tell, prepare
from rankwise.errors import RunError, UserError
from rankwise.lora.attach import attached, factor_names, initial_heads, initial_state
from rankwise.memory.parameters import capacity_floor
from rankwise.records import RankPattern, RankProbe, Trial
from rankwise.spectrum.adapter import Svd, decomposed, one_thread
from rankwise.spectrum.confirmed import Confirmed, compared, point_of
from rankwise.spectrum.gradients import RandomMatrices, Warmed, sketched_gradients
from rankwise.spectrum.patterns import commonest, ranks_for_budget
from rankwise.tasks.task import Task, training_rows
from rankwise.train.cost import PeakMemory
from rankwise.train.failure import device_failure_told, out_of_memory_told
from rankwise.train.loop import PackOptimizer, checkpointed_activations, train_step

_STEPS = 100  # of a warm-up
_POINTS = (0, 10, 40)  # at which gradients are sketched
_WARM_UP_RANK = 64
_SKETCHED = 32  # columns of the range sketch

Rows = Sequence[np.ndarray]


def _silent(text: str, share: float | None = None) -> None:
    return None


def probe_ranks(
    config: ComparisonConfig,
    *,
    examples: int = 1024,
    params: int | None = None,
    observe: Tell = _silent,
) -> RankProbe:
    """Name a rank to look at, and a grid around it, from a short warm-up on at most so many training examples.

    `config` is that of the comparison that is to follow: the same model, data, target modules and alpha, the first of
    its learning rates, scalings, bases and seeds. With `params` a rank for each module, so that A and B of all have at
    most so many parameters. `observe` is told what happens, and the share that is done of what takes long. Validation
    and test examples are not used. Raises `UserError` for input that cannot be used,
    `RunError` for a warm-up that diverges.
    """
    memory = out_of_memory_told("start again with a smaller --batch-size or --gradient-checkpointing")
    with device_failure_told("run this again once it works"), memory:
        prepared = prepare(config.each_base[0], observe)
        return probe(prepared, examples=examples, params=params, observe=observe)


def probe(prepared: Prepared, *, examples: int, params: int | None, observe: Tell) -> RankProbe:
    """The same of what is in memory already."""
    targets = prepared.targets
    if params is not None:
        ranks_for_budget({}, _costs(targets), params)  # a budget that is too small is told before the work
    halves = _halves(prepared, examples)
    meter, started = PeakMemory(prepared.base), time.monotonic()
    largest = max(min(target.d_in, target.d_out) for target in targets)
    config = prepared.config
    rank = min(_WARM_UP_RANK, largest)
    trials = [config.trial(rank, config.learning_rates[0], config.first_seed + number) for number in range(2)]
    observe("warming up on one half of the examples")
    one = _warmed(prepared, trials[0], halves[0], observe)
    observe("warming up on the other half")
    other = _warmed(prepared, trials[1], halves[1], observe)
    with one_thread():
        update = compared(_STEPS, _updates(one[_STEPS], targets), _updates(other[_STEPS], targets))
    matrices = RandomMatrices.drawn(targets, min(_SKETCHED, largest), config.first_seed)
    gradients = []
    for step in _POINTS:
        observe(f"sketching gradients at step {step}")
        gradients.append(compared(step, *_gradients(prepared, one[step], matrices, halves)))
    seconds, peak = time.monotonic() - started, meter.bytes()
    point = point_of(update)
    named = min(_power_of_two(point.overall.rank_95), 2 ** int(math.log2(largest)))
    bits = _capacity_bits(prepared.task)
    return RankProbe(
        model=config.model,
        task=prepared.task.name,
        examples=sum(len(rows) for half in halves for rows in half),
        batch_size=config.batch_size,
        learning_rate=trials[0].learning_rate,
        warm_up_rank=rank,
        rank=named,
        at_least=rank < largest and 2 * named > rank,
        ranks=tuple(each for each in (named // 2, named, 2 * named, 4 * named) if 1 <= each <= largest),
        update=point,
        gradients=tuple(map(point_of, gradients)),
        capacity_bits=bits,
        capacity_floor=capacity_floor(math.ceil(bits), targets),
        pattern=None if params is None else _pattern(prepared, update, params),
        seconds=seconds,
        peak_memory_bytes=peak,
        notes=prepared.task.notes,
    )


def _halves(prepared: Prepared, examples: int) -> tuple[Rows, Rows]:
    """Full batches of training rows in turn, as many in either; at most so many examples in all."""
    size = prepared.config.batch_size
    lengths = prepared.task.train.input_ids.lengths
    batches = min(examples, len(lengths)) // size // 2 * 2
    if batches <= 0:
        raise UserError(
            f"examples: {min(examples, len(lengths)):,} make no two batches of {size}, one for each half; "
            "give more, or a smaller batch-size"
        )
    an_epoch = islice(training_rows(lengths, size, prepared.config.first_seed), math.ceil(len(lengths) / size))
    full = list(islice((rows for rows in an_epoch if len(rows) == size), batches))
    return full[::2], full[1::2]


def _warmed(prepared: Prepared, trial: Trial, half: Rows, observe: Tell) -> dict[int, Warmed]:
    """What a trial is after each of the steps that are looked at; it begins with the first seed's heads.

    Where heads differed, the directions of what is below them would, too.
    """
    base, targets = prepared.base, prepared.targets
    settings = replace(prepared.settings, steps=_STEPS, accumulation=1)
    begin = initial_state(base, trial, targets) | initial_heads(base, prepared.config.first_seed)
    found = {0: Warmed(trial, begin)}
    batches = cycle(half)
    with attached(base, [trial], targets) as pack, checkpointed_activations(base, settings):
        pack.load(0, begin)
        optimizer = PackOptimizer(pack, settings)
        for step in range(1, _STEPS + 1):
            losses = train_step(pack, optimizer, prepared.task, [next(batches)[None]], step - 1)
            if not losses.isfinite().all():
                raise RunError(
                    f"the warm-up diverged at step {step} with learning rate {trial.learning_rate:g}: "
                    "give a lower one first"
                )
            observe(f"step {step} of {_STEPS}", step / _STEPS)
            if step in (*_POINTS, _STEPS):
                found[step] = Warmed(trial, pack.state(0))
    return found


def _gradients(
    prepared: Prepared, warmed: Warmed, matrices: RandomMatrices, halves: Sequence[Rows]
) -> list[dict[str, Svd]]:
    return sketched_gradients(
        prepared.base,
        prepared.task,
        prepared.targets,
        warmed,
        matrices,
        halves,
        prepared.settings,
        packed=prepared.packable,
    )


def _updates(warmed: Warmed, targets: Sequence[LinearLayer]) -> dict[str, Svd]:
    """What each module's weight was changed by, over the scaling: one of all modules, and shares do not know it."""
    state = warmed.state
    return {target.name: decomposed(*(state[name] for name in factor_names(target.name))) for target in targets}


def _costs(targets: Sequence[LinearLayer]) -> dict[str, int]:
    """Parameters of rank 1 of each module."""
    return {target.name: target.lora_params(1) for target in targets}


def _pattern(prepared: Prepared, update: Confirmed, params: int) -> RankPattern:
    costs = _costs(prepared.targets)
    ranks = ranks_for_budget(update.confirmed, costs, params)
    rank, rank_pattern = commonest(ranks)
    use_rslora = prepared.config.scalings[0] == "rslora"
    scaling = prepared.config.trial(rank, 0.0, 0).scaling
    alphas = {name: scaling * (each**0.5 if use_rslora else each) for name, each in ranks.items()}
    alpha, alpha_pattern = commonest(alphas)
    return RankPattern(
        params=sum(ranks[name] * cost for name, cost in costs.items()),
        r=rank,
        lora_alpha=alpha,
        use_rslora=use_rslora,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )


def _capacity_bits(task: Task) -> float:
    """One bit a learned token; of classes the entropy of their distribution, an example."""
    if task.train.learned is not None:
        return float(task.train.learned.flat.sum())
    counts = np.bincount(task.train.labels)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum() * counts.sum())


def _power_of_two(rank: int) -> int:
    """The nearest by ratio.

    >>> [_power_of_two(rank) for rank in (0, 1, 3, 5, 6, 11, 12)]
    [1, 1, 4, 4, 8, 8, 16]
    """
    return 1 << round(math.log2(max(1, rank)))
