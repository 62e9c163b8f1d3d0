"""Train, validation and test: cut where they are missing, kept apart, capped. All before anything is tokenised."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt64

from rankwise.errors import UserError
from rankwise.tasks.examples import Examples
from rankwise.tasks.groups import FEWEST_TESTED
from rankwise.tasks.source import SplitName

TEST_SHARE = 0.2  # of the train rows, where no test data is given
VALIDATION_SHARE = 0.15  # of the train rows that are left, where no validation data is given
_TOO_NARROW = 1.05  # how far copies among test examples may make limits so, as a factor, without a note
_SHARES: dict[SplitName, float] = {"test": TEST_SHARE, "validation": VALIDATION_SHARE}
_FEWEST_GROUPS: dict[SplitName, int] = {"test": FEWEST_TESTED, "validation": 1}

Splits: TypeAlias = dict[SplitName, Examples]


def stratified_split(
    labels: Shaped[np.ndarray, " rows"],
    share: float,
    seed: int,
    groups: Shaped[np.ndarray, " rows"] | None = None,
    *,
    fewest: int = 0,
    left: int = 0,
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held_out"]]:
    """Row numbers of two disjoint parts, ascending, the second with about `share` of each label.

    Without groups each label's part is within one example of its share, and a label with two examples
    or more is on both sides. With groups every group is on one side; groups come in random order and
    each is held out where that brings the held-out label counts nearer to their shares, so with a
    single label the part is within half the largest group of its share. With `fewest`, at least so many
    groups are held out, and some of each label, as far as `left` groups of each label are kept.

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
        held_out = _held_out_groups(counts, share, generator.permutation(len(counts)), fewest, left)[group_of_row]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _held_out_groups(
    counts: Float[np.ndarray, "groups labels"],
    share: float,
    order: Int[np.ndarray, " groups"],
    fewest: int,
    left: int,
) -> Bool[np.ndarray, " groups"]:
    """Which groups are held out, of those that hold so many examples of each label; see `stratified_split`."""
    has = counts > 0
    lacking, kept = share * counts.sum(axis=0), has.sum(axis=0)
    chosen = np.zeros(len(counts), dtype=bool)
    for group in order:
        remaining = lacking - counts[group]
        if remaining @ remaining < lacking @ lacking and (kept[has[group]] > left).all():
            chosen[group], lacking, kept = True, remaining, kept - has[group]
    while fewest:
        may_go = ~chosen & ~(has & (kept <= left)).any(axis=1)
        wanted = may_go & has[:, ~has[chosen].any(axis=0)].any(axis=1)  # those with a label that is not there
        if chosen.sum() < fewest and not wanted.any():
            wanted = may_go
        among = order[wanted[order]]
        if not len(among):
            break
        group = among[np.argmin(((lacking - counts[among]) ** 2).sum(axis=1))]
        chosen[group], lacking, kept = True, lacking - counts[group], kept - has[group]
    return chosen


def missing_splits(splits: Splits) -> list[SplitName]:
    """Those that have to be cut from train, in the order in which they are."""
    return [split for split in _SHARES if split not in splits]


def cut_missing(splits: Splits, seed: int, *, how: str, origin: str) -> tuple[Splits, list[str]]:
    """Cut test, then validation, from train where they are missing, and no group apart.

    `how` says in words how rows are chosen, `origin` where train comes from. Raises `UserError` where there are too few
    groups.
    """
    whole, splits, notes = splits["train"], dict(splits), []
    missing = missing_splits(splits)
    for later, split in zip(reversed(range(len(missing))), missing, strict=True):
        train, fewest = splits["train"], _FEWEST_GROUPS[split]
        kept, held_out = stratified_split(
            train.labels, _SHARES[split], seed, train.groups, fewest=fewest, left=1 + later
        )
        splits[split], splits["train"] = train.take(held_out), train.take(kept)
        held = splits[split].groups
        if whole.groups is not None and held is not None and len(np.unique(held)) < fewest:
            wanted = " and ".join(f"{_FEWEST_GROUPS[each]} for {each}" for each in missing)
            raise UserError(
                f"{origin}: too few groups ({len(np.unique(whole.groups)):,}) to cut {wanted} from; "
                f"give {' and '.join(missing)} data, or leave out --group"
            )
        ways = how if whole.groups is None else f"{how}, groups whole"
        notes.append(f"{split}: {len(held_out):,} of {len(whole):,} train examples set aside ({ways}, seed {seed})")
    return splits, notes


def drop_leaked(splits: Splits, *, keep: bool) -> tuple[Splits, list[str]]:
    """Remove from validation what occurs in train, from test what occurs in either; be it a text or a group."""
    prints = {split: _fingerprints(examples) for split, examples in splits.items()}
    groups = {split: examples.groups for split, examples in splits.items() if examples.groups is not None}
    earlier: dict[SplitName, list[SplitName]] = {"validation": ["train"], "test": ["train", "validation"]}
    whole, splits, notes = splits, dict(splits), []
    for split, others in earlier.items():
        total, where = len(whole[split]), " or ".join(others)
        of_text = np.isin(prints[split], np.concatenate([prints[other] for other in others]))
        of_group = np.zeros_like(of_text)
        if split in groups:
            of_group = np.isin(groups[split], np.concatenate([groups[other] for other in others])) & ~of_text
        leaked = of_text | of_group
        if leaked.all() and not keep:
            which, more = "examples, or their groups,", ""
            if not of_group.any():
                which = "examples"
                more = "; if they were cut from train, remove the copies, or keep them together with --group"
            raise UserError(f"all {total:,} {split} {which} also occur in {where}; give other {split} data{more}")
        then = "kept, and reward memory" if keep else f"removed from {split}"
        for found, what in ((of_text, "also occur"), (of_group, "are of groups that also occur")):
            if found.any():
                notes.append(f"{found.sum():,} of {total:,} {split} examples {what} in {where}; they were {then}")
        if leaked.any() and not keep:
            splits[split] = splits[split].take(np.flatnonzero(~leaked))
    return splits, notes


def notes_on_copies(test: Examples) -> list[str]:
    """A note where limits that take test examples for independent are too narrow by more than 5 %, for some are copies.

    Of n examples with one score for all m_i copies of a text the mean varies by √(Σ m_i² / n) more. So a greeting
    that a few chats have in common is not worth a note, nor are copies within a group, which counts once.
    """
    prints = _fingerprints(test).view(np.int64)
    places = np.arange(len(test)) if test.groups is None else test.groups
    texts, _ = np.unique(np.stack([prints, places]), axis=1)
    different, copies = np.unique(texts, return_counts=True)
    if (copies @ copies / copies.sum()) ** 0.5 <= _TOO_NARROW:
        return []
    repeated = different[copies > 1]
    return [
        f"{np.isin(prints, repeated).sum():,} of {len(test):,} test examples are copies of one another "
        f"(different ones: {len(repeated):,}); limits take them for independent, and are too narrow: remove the "
        "copies, or give all of a text one group"
    ]


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
