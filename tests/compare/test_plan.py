from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rankwise.compare.config import ComparisonConfig
from rankwise.compare.plan import MOST_TRIALS, grid, plan_packs, trials_that_fit


def config(ranks: int, rates: int, seeds: int) -> ComparisonConfig:
    return ComparisonConfig(
        train="t.csv",
        ranks=tuple(2**power for power in range(ranks)),
        learning_rates=tuple(1e-3 * (i + 1) for i in range(rates)),
        seeds=seeds,
    )


counts = st.integers(1, 5)


@given(counts, counts, counts, st.integers(1, 9))
def test_every_trial_is_in_one_pack_of_its_seed(ranks: int, rates: int, seeds: int, size: int) -> None:
    trials = grid(config(ranks, rates, seeds))
    packs = plan_packs(trials, [], size)
    assert sorted(trial.id for pack in packs for trial in pack.trials) == sorted(trial.id for trial in trials)
    assert len(trials) == len({trial.id for trial in trials}) == ranks * rates * seeds
    for pack in packs:
        assert len({trial.seed for trial in pack.trials}) == 1
        assert len(pack.trials) <= size
    assert len({pack.id for pack in packs}) == len(packs)


@given(counts, counts, st.integers(1, 9))
def test_packs_of_a_seed_are_as_even_as_they_can_be(ranks: int, rates: int, size: int) -> None:
    sizes = [len(pack.trials) for pack in plan_packs(grid(config(ranks, rates, 1)), [], size)]
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-ranks * rates // size)


@given(counts, counts, counts, st.integers(1, 9), st.integers(1, 9))
def test_extending_a_run_leaves_its_packs_as_they_were(
    ranks: int, rates: int, seeds: int, size: int, new_size: int
) -> None:
    before = plan_packs(grid(config(ranks, rates, seeds)), [], size)
    wanted = grid(config(ranks + 1, rates, seeds + 1))
    after = plan_packs(wanted, before, new_size)
    assert after[: len(before)] == before
    assert sorted(trial.id for pack in after for trial in pack.trials) == sorted(trial.id for trial in wanted)
    assert plan_packs(wanted, after, size) == after


@given(st.integers(0, 10**11), st.integers(0, 10**11), st.integers(0, 10**10))
def test_a_pack_fits_what_is_free_and_has_a_trial_at_least(free: int, base: int, more: int) -> None:
    fitting = trials_that_fit(free_bytes=free, base_bytes=base, peak_bytes=base + more)
    assert 1 <= fitting <= MOST_TRIALS
    assert fitting == 1 or fitting * more <= free


def test_trials_train_alone_where_no_peak_could_be_measured() -> None:
    assert trials_that_fit(free_bytes=10**12, base_bytes=10**9, peak_bytes=None) == 1
