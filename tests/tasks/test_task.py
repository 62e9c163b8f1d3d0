from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.tasks.splits import stratified_split
from rankwise.tasks.task import Ragged, Split, collate, evaluation_rows, pack_rows, training_rows

row_lists = st.lists(st.lists(st.integers(0, 30_000), max_size=9), min_size=1, max_size=12)
lengths_of_rows = st.lists(st.integers(1, 50), min_size=1, max_size=200).map(np.array)


def split_of(rows: list[list[int]], *, token_types: bool = False, labels: list[int] | None = None) -> Split:
    return Split(
        example_ids=np.arange(len(rows)),
        input_ids=Ragged.from_rows(rows),
        token_type_ids=Ragged.from_rows([[1] * len(row) for row in rows]) if token_types else None,
        labels=np.array(labels if labels is not None else [0] * len(rows)),
    )


@given(row_lists)
def test_ragged_rows_come_back_as_they_went_in(rows: list[list[int]]) -> None:
    ragged = Ragged.from_rows(rows)
    assert [ragged[i].tolist() for i in range(len(ragged))] == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]


@given(st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=9), min_size=1, max_size=12), st.data())
def test_a_batch_holds_its_rows_and_nothing_but_padding_beside_them(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8)))
    batch = collate(split_of(rows, token_types=True, labels=list(range(len(rows)))), chosen, pad_token_id=3)
    assert batch.token_type_ids is not None
    assert batch.input_ids.shape[1] == max(len(rows[row]) for row in chosen)
    for position, row in enumerate(chosen):
        size = len(rows[row])
        assert batch.input_ids[position, :size].tolist() == rows[row]
        assert set(batch.input_ids[position, size:].tolist()) <= {3}
        assert batch.attention_mask[position].tolist() == [1] * size + [0] * (batch.input_ids.shape[1] - size)
        assert batch.token_type_ids[position].tolist() == batch.attention_mask[position].tolist()
    assert batch.labels.tolist() == chosen.tolist()


def test_a_batch_has_no_token_types_where_the_split_has_none() -> None:
    assert collate(split_of([[5, 6]]), np.array([0]), pad_token_id=0).token_type_ids is None


@given(lengths_of_rows, st.integers(1, 20), st.integers(0, 5))
def test_training_visits_every_row_once_an_epoch(lengths: np.ndarray, batch_size: int, seed: int) -> None:
    per_epoch = -(-len(lengths) // batch_size)
    batches = list(itertools.islice(training_rows(lengths, batch_size, seed), 2 * per_epoch))
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(len(lengths)))
        assert sorted(map(len, epoch))[1:] == [batch_size] * (per_epoch - 1)


@given(lengths_of_rows, st.integers(1, 20), st.integers(0, 5))
def test_training_batches_are_a_function_of_the_seed(lengths: np.ndarray, batch_size: int, seed: int) -> None:
    once, again = (itertools.islice(training_rows(lengths, batch_size, seed), 30) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    lengths = np.arange(1, 301)  # all in one window, and no two alike

    def epochs(seed: int) -> list[list[int]]:
        batches = itertools.islice(training_rows(lengths, 10, seed), 60)
        rows = np.concatenate(list(batches)).tolist()
        return [rows[:300], rows[300:]]

    orders = [*epochs(0), *epochs(1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    # Not the rows of a batch alone: which rows meet in one is of the seed, too.
    first, second = (
        {frozenset(rows.tolist()) for rows in itertools.islice(training_rows(lengths, 10, seed), 30)} for seed in (0, 1)
    )
    assert len(first & second) <= 1


def test_the_rows_of_a_pack_are_each_trials_own() -> None:
    lengths, seeds = np.arange(1, 100) % 40, [5, 0, 5, 2]
    side_by_side = list(itertools.islice(pack_rows(lengths, 8, seeds), 30))
    for position, seed in enumerate(seeds):
        alone = itertools.islice(training_rows(lengths, 8, seed), 30)
        assert all(np.array_equal(rows[position], own) for rows, own in zip(side_by_side, alone, strict=True))


@pytest.mark.parametrize(("seeds", "most"), [([0], 1.03), ([0, 1, 2, 3], 1.04)])
def test_training_batches_pad_less_than_a_plain_shuffle(seeds: list[int], most: float) -> None:
    lengths = np.random.default_rng(0).integers(5, 200, size=2000)

    def padded(batches: Iterable[np.ndarray]) -> int:
        return sum(rows.size * int(lengths[rows].max()) for rows in batches)

    bucketed = padded(itertools.islice(pack_rows(lengths, 20, seeds), 100))
    shuffled = len(seeds) * padded(np.split(np.random.default_rng(0).permutation(2000), 100))
    whole = len(seeds) * lengths.sum()
    assert whole <= bucketed < whole * most < shuffled


@given(lengths_of_rows, st.integers(1, 400))
def test_evaluation_visits_every_row_once_within_the_token_budget(lengths: np.ndarray, tokens: int) -> None:
    batches = list(evaluation_rows(lengths, tokens))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= tokens for rows in batches)


@pytest.mark.parametrize("changed", ["token", "label", "boundary"])
def test_the_fingerprint_sees_a_change_of(changed: str) -> None:
    rows, labels = [[1, 2], [3], [4, 5]], [0, 1, 0]
    base = split_of(rows, labels=labels).fingerprint()
    other = {
        "token": split_of([[1, 2], [9], [4, 5]], labels=labels),
        "label": split_of(rows, labels=[0, 0, 0]),
        "boundary": split_of([[1], [2, 3], [4, 5]], labels=labels),
    }[changed]
    assert base == split_of(rows, labels=labels).fingerprint() != other.fingerprint()


def test_the_fingerprint_of_the_first_rows_ignores_what_was_added() -> None:
    short, long = split_of([[1, 2], [3]], labels=[0, 1]), split_of([[1, 2], [3], [4, 5]], labels=[0, 1, 1])
    assert long.fingerprint(first=2) == short.fingerprint() != long.fingerprint()


label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=150).map(np.array)
shares = st.floats(0.05, 0.95)
seeds = st.integers(0, 2**32)


@given(label_lists, shares, seeds)
def test_a_split_is_complete_stratified_and_reproducible(labels: np.ndarray, share: float, seed: int) -> None:
    kept, held_out = stratified_split(labels, share, seed)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        held = int((labels[held_out] == label).sum())
        assert abs(held - share * count) < 1
        assert count == 1 or 0 < held < count
    again = stratified_split(labels, share, seed)
    assert np.array_equal(kept, again[0])
    assert np.array_equal(held_out, again[1])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=150), shares, seeds)
def test_a_split_by_groups_keeps_them_whole(pairs: list[tuple[int, int]], share: float, seed: int) -> None:
    labels, groups = np.array(pairs).T
    kept, held_out = stratified_split(labels, share, seed, groups=groups)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    assert not set(groups[kept]) & set(groups[held_out])


@given(st.lists(st.integers(0, 12), min_size=1, max_size=150).map(np.array), shares, seeds)
def test_a_split_by_groups_misses_its_share_by_half_a_group_at_most(
    groups: np.ndarray, share: float, seed: int
) -> None:
    _, held_out = stratified_split(np.zeros_like(groups), share, seed, groups=groups)
    assert abs(len(held_out) - share * len(groups)) <= np.bincount(groups).max() / 2 + 1e-9


@pytest.mark.parametrize("groups", [None, np.arange(100) // 2])
def test_another_seed_is_another_split(groups: np.ndarray | None) -> None:
    labels = np.arange(100) % 2
    held_out = [stratified_split(labels, 0.3, seed, groups=groups)[1].tolist() for seed in range(5)]
    assert len({tuple(rows) for rows in held_out}) == 5
