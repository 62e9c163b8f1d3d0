from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rankwise.compare.plan import divide, plan_packs, trials_that_fit
from rankwise.compare.schedule import Leg
from rankwise.records import Trial


def trials(ranks: int, rates: int, seeds: int) -> list[Trial]:
    return [
        Trial(2**rank, 1.0, False, 1e-3 * (rate + 1), seed)
        for rank in range(ranks)
        for rate in range(rates)
        for seed in range(seeds)
    ]


counts = st.integers(1, 5)


@given(counts, counts, counts, st.integers(1, 9))
def test_every_trial_is_in_one_pack(ranks: int, rates: int, seeds: int, size: int) -> None:
    wanted = trials(ranks, rates, seeds)
    packs = plan_packs(Leg(tuple(wanted), 10, 20), size, first=7)
    assert sorted(trial.id for pack in packs for trial in pack.trials) == sorted(trial.id for trial in wanted)
    for pack in packs:
        assert len(pack.trials) <= size
        assert (pack.start, pack.stop) == (10, 20)
    assert [pack.id for pack in packs] == [f"pack{number:04d}" for number in range(7, 7 + len(packs))]


@given(counts, counts, counts, st.integers(1, 9))
def test_packs_are_as_even_as_they_can_be_and_of_like_ranks(ranks: int, rates: int, seeds: int, size: int) -> None:
    packs = divide(trials(ranks, rates, seeds)[::-1], size)
    sizes = [len(members) for members in packs]
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-ranks * rates * seeds // size)
    in_order = [trial.rank for members in packs for trial in members]
    assert in_order == sorted(in_order, reverse=True)


@given(st.integers(0, 10**11), st.integers(-(10**6), 10**10))
def test_a_pack_fits_what_is_free_and_has_a_trial_at_least(free: int, each: int) -> None:
    fitting = trials_that_fit(free_bytes=free, trial_bytes=each)
    assert fitting >= 1
    assert fitting == 1 or fitting * each <= free
