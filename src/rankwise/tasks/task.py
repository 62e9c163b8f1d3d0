"""What a task is to the rest of the house: tokenised splits, and batches cut from them.

Text is tokenised once, for all trials, into flat arrays (a million short rows take
megabytes, not gigabytes). A batch is a pure function of lengths, seed and position, so
every rank of a seed sees the same batches in the same order and a resumed run finds its place.

Batches are bucketed: rows are shuffled, cut into windows of `WINDOW` batches and sorted by
length inside each window, but for a random shift of less than two batches, so that a batch pads
to nearly its own length while its content stays random. At one place of an epoch the batches of all
seeds are of about one length, so that those of several, side by side in a pack, pad little too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int, Int64

from rankwise.records import AccuracyOf

WINDOW = 128  # batches sorted by length together

PackRows: TypeAlias = Int[np.ndarray, "trials batch"]  # the rows of each trial's batch


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, one after another in `flat`; row i is flat[offsets[i]:offsets[i+1]]."""

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_rows(cls, rows: list[list[int]]) -> Ragged:
        """
        >>> Ragged.from_rows([[5, 6, 7], [8]])[0].tolist()
        [5, 6, 7]
        """
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        flat = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1]))
        return cls(flat, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int | np.integer) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Split:
    """Tokenised examples of one split.

    `example_ids` name the rows of the source; `groups` are the clusters for the statistics
    (docmatch: the source file; else what a column says), None where every example stands alone. `labels` are class
    numbers, and `learned` is None; in instruction tuning `learned` has a 1 for each token that is learned, and `labels`
    are 0. In a multiple choice `rivals` are the wrong choices, each with the id of its example; the example itself is
    the right one.
    """

    example_ids: np.ndarray
    input_ids: Ragged
    token_type_ids: Ragged | None
    labels: np.ndarray
    groups: np.ndarray | None = None
    learned: Ragged | None = None
    rivals: Split | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self, first: int | None = None) -> str:
        """SHA-256 over tokens, labels, groups and rivals of the `first` rows (all by default)."""
        count = len(self) if first is None else first
        digest = hashlib.sha256()
        digest.update(self.input_ids.flat[: self.input_ids.offsets[count]].tobytes())
        digest.update(self.input_ids.offsets[: count + 1].tobytes())
        digest.update(np.asarray(self.labels[:count], dtype=np.int64).tobytes())
        if self.groups is not None:
            digest.update(np.asarray(self.groups[:count], dtype=np.int64).tobytes())
        if self.learned is not None:
            digest.update(self.learned.flat[: self.learned.offsets[count]].tobytes())
        if self.rivals is not None:
            for row in np.flatnonzero(np.isin(self.rivals.example_ids, self.example_ids[:count])):
                digest.update(self.rivals.example_ids[row].tobytes() + self.rivals.input_ids[row].tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Task:
    """Examples, and how one example is scored: by the likelihood of its class, or of its learned tokens.

    `outcomes` is how many classes, or tokens, there are to choose from; `labels` names the classes, and is empty in
    instruction tuning. There an example's accuracy is the share of its learned tokens that are the model's first
    choice, with `exact` whether all of them are, and in a multiple choice whether its mean NLL is the lowest. `notes`
    are sentences for the user about what preparing the data changed. `retained` are other texts, which are only scored,
    before and after: what do adapters forget?
    """

    name: str
    labels: tuple[str, ...]
    outcomes: int
    train: Split
    validation: Split
    test: Split
    pad_token_id: int
    notes: tuple[str, ...] = ()
    exact: bool = False
    retained: Split | None = None

    @property
    def is_instruction(self) -> bool:
        return self.train.learned is not None

    @property
    def accuracy_of(self) -> AccuracyOf:
        """What accuracies are shares of."""
        if not self.is_instruction:
            return "examples"
        if self.test.rivals is not None:
            return "choices"
        return "completions" if self.exact else "tokens"


@dataclass(frozen=True)
class Learned:
    """The tokens of a batch that are learned, in order: their rows and columns."""

    rows: Int64[torch.Tensor, " tokens"]
    columns: Int64[torch.Tensor, " tokens"]


@dataclass(frozen=True)
class Batch:
    """One padded batch. Rows are padded on the right. `learned` is None where rows have classes."""

    input_ids: Int64[torch.Tensor, "batch length"]
    attention_mask: Int64[torch.Tensor, "batch length"]
    token_type_ids: Int64[torch.Tensor, "batch length"] | None
    labels: Int64[torch.Tensor, " batch"]
    learned: Learned | None = None

    @property
    def inputs(self) -> dict[str, Int64[torch.Tensor, "batch length"]]:
        """What a model is called with."""
        types = {} if self.token_type_ids is None else {"token_type_ids": self.token_type_ids}
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask} | types

    @property
    def outcomes_by_row(self) -> Int64[torch.Tensor, " batch"]:
        """How many classes, or tokens, are learned of each row."""
        if self.learned is None:
            return torch.ones_like(self.labels)
        return torch.bincount(self.learned.rows, minlength=len(self.labels))

    def to(self, device: torch.device) -> Batch:
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        types, learned = self.token_type_ids, self.learned
        return Batch(
            moved(self.input_ids),
            moved(self.attention_mask),
            None if types is None else moved(types),
            moved(self.labels),
            None if learned is None else Learned(moved(learned.rows), moved(learned.columns)),
        )


def collate(split: Split, rows: np.ndarray, pad_token_id: int) -> Batch:
    """The given rows of a split as one right-padded batch."""
    lengths = split.input_ids.lengths[rows]
    columns = np.arange(int(lengths.max()))
    attention_mask = (columns[None, :] < lengths[:, None]).astype(np.int64)

    def padded(ragged: Ragged, fill: int) -> torch.Tensor:
        out = np.full(attention_mask.shape, fill, dtype=np.int64)
        out[attention_mask.astype(bool)] = np.concatenate([ragged[row] for row in rows])
        return torch.from_numpy(out)

    return Batch(
        input_ids=padded(split.input_ids, pad_token_id),
        attention_mask=torch.from_numpy(attention_mask),
        token_type_ids=None if split.token_type_ids is None else padded(split.token_type_ids, 0),
        labels=torch.from_numpy(split.labels[rows].astype(np.int64)),
        learned=None if split.learned is None else Learned(*padded(split.learned, 0).nonzero(as_tuple=True)),
    )


def training_rows(lengths: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of one training batch after another, for ever; every row once an epoch.

    The last batch of an epoch holds what is left over.
    """
    epoch = 0
    while True:
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(lengths))
        span = batch_size * WINDOW
        windows = [order[start : start + span] for start in range(0, len(order), span)]
        sorted_windows = [window[_about_by_length(lengths[window], batch_size, generator)] for window in windows]
        by_length = np.concatenate(sorted_windows)
        batches = [by_length[start : start + batch_size] for start in range(0, len(order), batch_size)]
        # Of all seeds alike: a place's length is that of its window's share.
        for position in np.random.default_rng(epoch).permutation(len(batches)):
            yield batches[position]
        epoch += 1


def _about_by_length(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """Where rows of these lengths stand, the longest first, each out of its place by less than two batches.

    In their places, the rows of an epoch of one window would make the same batches for every seed.
    """
    places = np.argsort(np.argsort(-lengths, kind="stable"))
    return np.argsort(places + 2 * batch_size * generator.random(len(lengths)))


def pack_rows(lengths: np.ndarray, batch_size: int, seeds: Sequence[int]) -> Iterator[PackRows]:
    """`training_rows` of trials with these seeds, side by side."""
    distinct = sorted(set(seeds))
    for batches in zip(*(training_rows(lengths, batch_size, seed) for seed in distinct), strict=True):
        of_seed = dict(zip(distinct, batches, strict=True))
        yield np.stack([of_seed[seed] for seed in seeds])


def evaluation_rows(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Every row once, longest first, in batches of at most `tokens` padded tokens (at least one row)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size
