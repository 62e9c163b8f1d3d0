"""Train, validation and test: cut where they are missing, kept apart, capped. All before anything is tokenised."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import TypeAlias

import numpy as np
from jaxtyping import Int, Shaped, UInt64

from rankwise.errors import UserError
from rankwise.tasks.examples import Examples
from rankwise.tasks.source import SplitName

TEST_SHARE = 0.2  # of the train rows, where no test data is given
VALIDATION_SHARE = 0.15  # of the train rows that are left, where no validation data is given
_SHARES: dict[SplitName, float] = {"test": TEST_SHARE, "validation": VALIDATION_SHARE}

Splits: TypeAlias = dict[SplitName, Examples]


def stratified_split(
    labels: Shaped[np.ndarray, " rows"],
    share: float,
    seed: int,
    groups: Shaped[np.ndarray, " rows"] | None = None,
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held_out"]]:
    """Row numbers of two disjoint parts, ascending, the second with about `share` of each label.

    Without groups each label's part is within one example of its share, and a label with two examples
    or more is on both sides. With groups every group is on one side; groups come in random order and
    each is held out where that brings the held-out label counts nearer to their shares, so with a
    single label the part is within half the largest group of its share.

    >>> kept, held_out = stratified_split(np.array([0, 0, 0, 0, 1, 1]), 0.5, seed=0)
    >>> len(kept), len(held_out)
    (3, 3)
    """
    generator = np.random.default_rng(seed)
    _, classes = np.unique(labels, return_inverse=True)
    held_out = np.zeros(len(classes), dtype=bool)
    if groups is None:
        for label in range(classes.max() + 1):
            members = generator.permutation(np.flatnonzero(classes == label))
            held_out[members[: min(max(round(share * len(members)), 1), len(members) - 1)]] = True
    else:
        _, group_of_row = np.unique(groups, return_inverse=True)
        counts = np.zeros((group_of_row.max() + 1, classes.max() + 1))
        np.add.at(counts, (group_of_row, classes), 1)
        lacking = share * counts.sum(axis=0)
        chosen = np.zeros(len(counts), dtype=bool)
        for group in generator.permutation(len(counts)):
            remaining = lacking - counts[group]
            if remaining @ remaining < lacking @ lacking:
                chosen[group], lacking = True, remaining
        held_out = chosen[group_of_row]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def missing_splits(splits: Splits) -> list[SplitName]:
    """Those that have to be cut from train, in the order in which they are."""
    return [split for split in _SHARES if split not in splits]


def cut_missing(splits: Splits, seed: int, *, how: str) -> tuple[Splits, list[str]]:
    """Cut test, then validation, from train where they are missing; `how` says in words how rows are chosen."""
    total, splits, notes = len(splits["train"]), dict(splits), []
    for split in missing_splits(splits):
        kept, held_out = stratified_split(splits["train"].labels, _SHARES[split], seed)
        splits[split] = splits["train"].take(held_out)
        splits["train"] = splits["train"].take(kept)
        notes.append(f"{split}: {len(held_out):,} of {total:,} train examples set aside ({how}, seed {seed})")
    return splits, notes


def drop_leaked(splits: Splits, *, keep: bool) -> tuple[Splits, list[str]]:
    """Remove from validation what occurs in train, from test what occurs in either."""
    prints = {split: _fingerprints(examples) for split, examples in splits.items()}
    earlier: dict[SplitName, list[SplitName]] = {"validation": ["train"], "test": ["train", "validation"]}
    splits, notes = dict(splits), []
    for split, others in earlier.items():
        leaked = np.isin(prints[split], np.concatenate([prints[other] for other in others]))
        count, total, where = int(leaked.sum()), len(leaked), " or ".join(others)
        if count == 0:
            continue
        found = f"{count:,} of {total:,} {split} examples also occur in {where}"
        if keep:
            notes.append(f"{found}; they were kept, and reward memory")
        elif count == total:
            raise UserError(f"all {total:,} {split} examples also occur in {where}; give other {split} data")
        else:
            notes.append(f"{found}; they were removed from {split}")
            splits[split] = splits[split].take(np.flatnonzero(~leaked))
    return splits, notes


def capped(examples: Examples, cap: int | None, seed: int) -> Examples:
    """At most `cap` examples, a random part; a larger cap adds examples and changes none."""
    if cap is None:
        return examples
    return examples.take(np.random.default_rng(seed).permutation(len(examples))[:cap])


def _fingerprints(examples: Examples) -> UInt64[np.ndarray, " examples"]:
    """64-bit hashes that agree for texts alike up to case, white space and compatibility forms.

    Among a million examples two different ones share a hash with a probability of 3e-8.
    """
    pairs = [""] * len(examples) if examples.pairs is None else examples.pairs
    digests = (
        hashlib.blake2b(f"{_plain(text)}\n{_plain(pair)}".encode(), digest_size=8).digest()
        for text, pair in zip(examples.texts, pairs, strict=True)
    )
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
