from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.compare.escalate import Room, next_step
from rankwise.compare.evidence import Evidence, Scale, Step, path_text
from rankwise.decide.verdict import Margin
from rankwise.records import Baseline, Evaluation, Metric, Trial, TrialResult
from rankwise.train.cost import StepCost

GIGA = 10**9


def of(loss: float, *, spread: float = 0.0, train: float | None = None, rising: bool = False) -> Evidence:
    """Its mean loss in validation, `spread` apart at three seeds, and in training if not told otherwise."""
    losses = (loss - spread, loss, loss + spread)
    return Evidence(losses, loss, loss if train is None else train, rising)


def chance(*losses: float, ranks: Sequence[int] = (8, 16), **more: Any) -> dict[int, Evidence | None]:
    """Ranks with these losses, the first one's seeds a little apart from the others' so that chance can be told."""
    return {
        rank: of(loss, spread=0.0005 * number, **more)
        for number, (rank, loss) in enumerate(zip(ranks, losses, strict=True), start=1)
    }


def scale(*, margin: float | None = 0.01, metric: Metric = "nll", keep: float = 0.95, baseline: float = 0.7) -> Scale:
    return Scale(metric, Margin(keep, margin), Baseline(accuracy=0.5, nll=baseline), chance=math.log(2))


def room(
    *,
    largest_rank: int = 10**6,
    peaks: Mapping[int, int | None] | None = None,
    free_bytes: int = 10 * GIGA,
    seconds_left: float | None = None,
) -> Room:
    costs = [StepCost(rank, rank / 8, peak) for rank, peak in (peaks or {8: None, 16: None}).items()]
    return Room(largest_rank, costs, base_bytes=GIGA, free_bytes=free_bytes, steps=100, seconds_left=seconds_left)


def ended(evidence: Mapping[int, Evidence | None], **more: Any) -> tuple[int | None, str | None]:
    step = next_step(evidence, more.get("scale", scale()), more.get("room", room()))
    assert (step.rank is None) != (step.stopped is None)
    assert step.found
    return step.rank, step.stopped


def test_a_larger_rank_that_is_better_by_more_than_the_margin_is_doubled() -> None:
    assert ended(chance(0.5, 0.4)) == (32, None)
    assert ended(chance(0.5, 0.4, 0.3, ranks=(8, 16, 32))) == (64, None)


def test_neighbours_that_agree_lead_down() -> None:
    assert ended(chance(0.402, 0.4)) == (4, None)
    assert ended(chance(0.4, 0.401)) == (4, None)
    assert ended(chance(0.402, 0.402, 0.4, ranks=(4, 8, 16))) == (2, None)


def test_a_larger_rank_that_is_worse_leads_down() -> None:
    step = next_step(chance(0.4, 0.5), scale(), room())
    assert (step.rank, step.found) == (4, ("8 is better than 16 (0.1 nats, margin 0.01)",))


def test_it_stops_on_a_plateau_whose_next_smaller_rank_loses() -> None:
    assert ended(chance(0.45, 0.402, 0.4, ranks=(4, 8, 16))) == (None, "plateau")


def test_it_stops_on_a_plateau_at_rank_1() -> None:
    assert ended(chance(0.402, 0.402, 0.4, ranks=(1, 2, 4))) == (None, "plateau")
    assert ended(chance(0.402, 0.4, ranks=(1, 2))) == (None, "plateau")


def test_after_doubling_a_plateau_asks_the_ranks_below_that_are_there() -> None:
    up = next_step(chance(0.5, 0.4), scale(), room())
    flat = next_step(chance(0.5, 0.4, 0.399, ranks=(8, 16, 32)), scale(), room())
    assert (flat.rank, flat.stopped) == (None, "plateau")
    assert path_text([up, flat]) == (
        "8 loses 0.1 nats to 16 (margin 0.01): it underfits → 16 and 32 agree (0.001 nats, margin 0.01) → "
        "8 loses 0.1: it underfits → stop: plateau"
    )
    # Where the margin grew with the gain, what lost before may not lose now.
    assert ended(chance(0.404, 0.4, 0.399, ranks=(8, 16, 32))) == (4, None)


def test_the_path_in_words() -> None:
    down = next_step(chance(0.402, 0.4), scale(), room())
    further = next_step(chance(0.403, 0.402, 0.4, ranks=(4, 8, 16)), scale(), room())
    last = next_step(chance(0.45, 0.403, 0.402, 0.4, ranks=(2, 4, 8, 16)), scale(), room())
    assert path_text([down]) == "8 and 16 agree (0.002 nats, margin 0.01) → next: 4"
    assert path_text([down, further, last]) == (
        "8 and 16 agree (0.002 nats, margin 0.01) → 4 too (0.003) → 2 loses 0.05: it underfits → stop: plateau"
    )


@pytest.mark.parametrize("mean", [0.0, 0.4, -0.4, 0.01])
def test_limits_on_both_sides_of_the_margin_are_noise(mean: float) -> None:
    assert ended({8: of(0.4 + mean, spread=0.5), 16: of(0.4)}) == (None, "noise")


def test_noise_below_stops_too() -> None:
    assert ended({4: of(0.41, spread=0.1)} | chance(0.402, 0.4)) == (None, "noise")


def test_the_limits_are_those_of_students_t_over_paired_seeds() -> None:
    """Three seeds: 2.92 standard errors of the mean difference, whatever the seeds have in common."""
    differences = (0.01, 0.02, 0.03)
    error = 0.01 / math.sqrt(3)
    larger = Evidence((0.1, 0.5, 0.9), 0.5, 0.5, False)
    smaller = Evidence(tuple(a + b for a, b in zip(larger.losses, differences, strict=True)), 0.52, 0.52, False)
    low, high = 0.02 - 2.92 * error, 0.02 + 2.92 * error
    for margin, expected in (
        (low - 1e-4, (32, None)),
        (low + 1e-4, (None, "noise")),
        (high - 1e-4, (None, "noise")),
        (high + 1e-4, (4, None)),
    ):
        assert ended({8: smaller, 16: larger}, scale=scale(margin=margin)) == expected, margin


def test_one_seed_is_always_noise() -> None:
    one = {8: Evidence((0.9,), 0.9, 0.9, False), 16: Evidence((0.1,), 0.1, 0.1, False)}
    assert ended(one) == (None, "noise")


def test_seeds_that_do_not_differ_at_all_are_no_evidence() -> None:
    """Accuracies of few examples agree exactly, and that shows nothing of chance."""
    assert ended({8: of(0.25), 16: of(0.25)}) == (None, "noise")


@pytest.mark.parametrize("lost", [8, 16])
def test_a_rank_that_trains_at_no_rate_tells_nothing(lost: int) -> None:
    step = next_step(chance(0.402, 0.4) | {lost: None}, scale(), room())
    assert step == Step((f"{lost} has no learning rate at which every seed trains",), None, "noise")


def test_training_by_heart_while_validation_gets_worse_is_data() -> None:
    assert ended(chance(0.5, 0.4, train=0.03, rising=True)) == (None, "data")
    assert ended(chance(0.5, 0.4, train=0.03, rising=False)) == (32, None)
    assert ended(chance(0.5, 0.4, train=0.04, rising=True)) == (32, None)  # 5 % of log 2 are 0.035
    assert ended(chance(0.402, 0.4, train=0.03, rising=True)) == (4, None)  # smaller ranks may still do


def test_no_rank_beyond_the_adapted_layers() -> None:
    assert ended(chance(0.5, 0.4), room=room(largest_rank=32)) == (32, None)
    assert ended(chance(0.5, 0.4), room=room(largest_rank=31)) == (None, "rank limit")


@pytest.mark.parametrize(
    ("peaks", "free_bytes", "expected"),
    [
        # 1 GB more for each 8 ranks: 6 GB beside the base model at 32.
        ({8: 4 * GIGA, 16: 5 * GIGA}, 6 * GIGA, (32, None)),
        ({8: 4 * GIGA, 16: 5 * GIGA}, 6 * GIGA - 1, (None, "memory")),
        # A larger rank never takes less, whatever chance measured.
        ({8: 5 * GIGA, 16: 4 * GIGA}, 3 * GIGA, (32, None)),
        ({8: 5 * GIGA, 16: 4 * GIGA}, 3 * GIGA - 1, (None, "memory")),
        ({8: None, 16: None}, 0, (32, None)),
    ],
)
def test_memory(peaks: dict[int, int | None], free_bytes: int, expected: tuple[int | None, str | None]) -> None:
    assert ended(chance(0.5, 0.4), room=room(peaks=peaks, free_bytes=free_bytes)) == expected


def test_the_budget_counts_what_the_next_rank_takes() -> None:
    """A step of rank r takes r/8 seconds here, and a rank takes 100 steps."""
    assert ended(chance(0.5, 0.4), room=room(seconds_left=400)) == (32, None)
    assert ended(chance(0.5, 0.4), room=room(seconds_left=399)) == (None, "budget")
    # Below the smallest measured rank a step is not thought to be quicker: 8 takes 100 s.
    assert ended(chance(0.402, 0.4), room=room(seconds_left=100)) == (4, None)
    assert ended(chance(0.402, 0.4), room=room(seconds_left=99)) == (None, "budget")
    spent = next_step(chance(0.402, 0.4), scale(), room(seconds_left=-50))
    assert (spent.stopped, spent.found[-1]) == ("budget", "4 would take 100 s, and 0 s are left")


def test_a_larger_rank_that_is_better_only_on_validation_is_not_said_to_show_underfitting() -> None:
    def why(smaller_train: float) -> str:
        evidence = {8: of(0.5, spread=0.0005, train=smaller_train), 16: of(0.4, train=0.3)}
        step = next_step(evidence, scale(), room())
        assert step.rank == 32
        return step.found[0]

    assert why(0.33) == "8 loses 0.1 nats to 16 (margin 0.01): it underfits"
    assert why(0.305) == "8 loses 0.1 nats to 16 (margin 0.01), but not in training: generalisation or noise"


def test_the_margin_is_a_share_of_the_largest_ranks_gain() -> None:
    keeping = scale(margin=None, keep=0.9, baseline=0.9)
    assert keeping.delta(of(0.4)) == pytest.approx(0.05)
    assert ended(chance(0.44, 0.4), scale=keeping) == (4, None)
    assert ended(chance(0.46, 0.4), scale=keeping) == (32, None)
    # Without a gain there is nothing to share, so whatever is better for sure is more.
    assert scale(margin=None, baseline=0.3).delta(of(0.4)) == 0
    assert ended(chance(0.41, 0.4), scale=scale(margin=None, baseline=0.3)) == (32, None)


def test_accuracy_has_a_margin_of_its_own_and_training_that_of_its_loss() -> None:
    by_accuracy = scale(margin=None, metric="accuracy", keep=0.9, baseline=0.7)
    largest = Evidence((0.2, 0.2, 0.2), nll=0.5, train_nll=0.4, rising=False)
    assert by_accuracy.delta(largest) == pytest.approx(0.1 * (0.5 - 0.2))
    assert by_accuracy.train_delta(largest) == pytest.approx(0.1 * (0.7 - 0.5))
    smaller = Evidence((0.30, 0.31, 0.30), nll=0.6, train_nll=0.45, rising=False)
    step = next_step({8: smaller, 16: largest}, by_accuracy, room())
    assert (step.rank, step.found) == (32, ("8 loses 10 points to 16 (margin 3): it underfits",))


def test_a_difference_of_rounding_is_none() -> None:
    assert [scale(metric="accuracy").figure(loss) for loss in (-8.3e-17, 0.018, -0.0067)] == ["0", "1.8", "−0.67"]


def trained(train: Sequence[float], *validation: tuple[float, float]) -> TrialResult:
    evaluations = tuple(Evaluation(step, nll, accuracy) for step, (nll, accuracy) in enumerate(validation, start=1))
    return TrialResult(Trial(8, 8.0, False, 1e-3, 0), "trained", tuple(train), evaluations)


def test_evidence_is_the_last_of_validation_and_the_last_tenth_of_training() -> None:
    results = [
        trained([9.0] * 18 + [0.2, 0.4], (0.5, 0.7), (0.6, 0.8)),
        trained([9.0] * 18 + [0.6, 0.8], (0.9, 0.6), (0.7, 0.7)),
    ]
    assert Evidence.of(results, "nll") == Evidence((0.6, 0.7), pytest.approx(0.65), pytest.approx(0.5), rising=False)
    assert Evidence.of(results, "accuracy").losses == pytest.approx((0.2, 0.3))
    assert Evidence.of([trained([0.1], (0.5, 0.7), (0.6, 0.7))], "nll").rising
    assert not Evidence.of([trained([0.1], (0.5, 0.7))], "nll").rising


@given(
    start=st.integers(1, 40),
    largest_rank=st.integers(1, 5000),
    seeds=st.integers(1, 4),
    spread=st.sampled_from([0.0, 1e-4, 0.03, 0.5]),
    seed=st.integers(0, 10**6),
    margin=st.one_of(st.none(), st.floats(1e-4, 0.5)),
    metric=st.sampled_from(["nll", "accuracy"]),
    seconds=st.one_of(st.none(), st.floats(-10, 10**5)),
    slope=st.floats(-2.0, 2.0),
)
def test_every_escalation_ends_trains_each_rank_once_and_doubles_only_what_is_better(
    start: int,
    largest_rank: int,
    seeds: int,
    spread: float,
    seed: int,
    margin: float | None,
    metric: Metric,
    seconds: float | None,
    slope: float,
) -> None:
    drawn = random.Random(seed)
    measure = scale(margin=margin, metric=metric)

    def train(rank: int) -> Evidence | None:
        if drawn.random() < 0.05:
            return None
        loss = 0.4 + slope / rank
        losses = tuple(loss + drawn.gauss(0, spread) for _ in range(seeds))
        return Evidence(losses, loss, loss + drawn.gauss(0, 0.1), drawn.random() < 0.5)

    evidence = {rank: train(rank) for rank in (start, 2 * start)}
    steps = []
    while True:
        steps.append(next_step(evidence, measure, room(largest_rank=largest_rank, seconds_left=seconds)))
        rank = steps[-1].rank
        if rank is None:
            break
        assert rank not in evidence
        assert rank == max(evidence) * 2 or rank == min(evidence) // 2
        if rank > max(evidence):
            best, half = evidence[max(evidence)], evidence[max(evidence) // 2]
            assert best is not None
            assert half is not None
            differences = [a - b for a, b in zip(half.losses, best.losses, strict=True)]
            assert sum(differences) / seeds > measure.delta(best)
            assert seeds > 1
            assert rank <= largest_rank
        evidence[rank] = train(rank)
        assert len(evidence) < 30
    assert steps[-1].stopped is not None
    assert path_text(steps).endswith(f"stop: {steps[-1].stopped}")
