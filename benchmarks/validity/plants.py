"""Tasks whose sufficient rank is known because it was built in.

A small frozen transformer is taught: some of its linear layers get an update of exact rank r*, with equal
singular values. Labels of random token sequences are drawn from the taught model's own softmax. A student
that starts from the frozen model can then reach the teacher with adapters of rank r*, and with no smaller
ones: none of the r* directions is a trifle that can be left out.

That is so for the weights by construction. For the loss it took some care:

- Features have no common direction. A mean that position embeddings add to all of them makes one direction of
  an update worth more than the rest together, so these embeddings are zero, and the first token, which BERT
  classifies from, is as random as the others.
- There are more labels than hidden units, or the frozen head would hide part of the update from the labels.
- The gain is large beside what sampled labels leave uncertain: the head is scaled up, and the update is as
  large as the weights it is added to. With less, noise in many parameters rivals what a rank brings.
- One of the taught layers is the last before the head. Where the feed-forward layer alone was taught, half of
  the rank kept up to 98 % of the gain: nonlinearities and the layer's residual blur what a direction does.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer, match_targets
from rankwise.tasks.task import Ragged, Split, Task

VOCABULARY = 256
LENGTH = 3
LABELS = 64
TARGETS = ("value", "pooler.dense")  # one before the layer's nonlinearities, one after them
_HIDDEN = 48
_HEAD_SCALE = 6.0  # the teacher then leaves 1.3 nats of log(64) = 4.2 to chance: labels that say much
_ROWS = 4096  # sequences in one forward


@dataclass(frozen=True)
class Sizes:
    """Examples of each split."""

    train: int
    validation: int
    test: int


def frozen_transformer(seed: int, labels: int = LABELS) -> BaseModel:
    """A one-layer BERT with random weights, loaded as any model is: with another number of labels its head is new."""
    with tempfile.TemporaryDirectory() as directory:
        save_transformer(Path(directory), seed)
        return load_base(directory, num_labels=labels, dtype="float32", device="cpu")


def save_transformer(directory: Path, seed: int) -> None:
    """The same as a directory; its tokenizer knows the words t1, t2, …"""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=_HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        num_labels=LABELS,
        initializer_range=1 / math.sqrt(_HIDDEN),
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config)
        model.bert.embeddings.position_embeddings.weight.zero_()
        model.bert.embeddings.token_type_embeddings.weight.zero_()
        model.classifier.weight.mul_(_HEAD_SCALE)
        config.save_pretrained(directory)
        save_file(model.state_dict(), directory / "model.safetensors", {"format": "pt"})
        vocabulary = {"[PAD]": 0} | {f"t{number}": number for number in range(1, VOCABULARY)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(directory)


def headless(base: BaseModel) -> BaseModel:
    """The same model with its head frozen too, so that rank 0 is the model as it is."""
    return dataclasses.replace(base, trained_modules=(), fresh_modules=frozenset(), trained_shapes={})


def targets_of(base: BaseModel) -> tuple[LinearLayer, ...]:
    """The layers that are taught, and adapted."""
    return match_targets(base.model, TARGETS)


def planted_task(base: BaseModel, rank: int, sizes: Sizes, seed: int) -> Task:
    """Random sequences with labels drawn from a teacher of this rank; of rank 0 from `base` as it is."""
    generator = np.random.default_rng([seed, rank])
    with _taught(base, targets_of(base), rank, generator):
        return _random_task(base, LABELS, sizes, generator, teacher=base.model)


def coin_task(base: BaseModel, sizes: Sizes, seed: int) -> Task:
    """Random sequences with two labels that do not depend on them."""
    return _random_task(base, 2, sizes, np.random.default_rng(seed), teacher=None)


@contextmanager
def _taught(
    base: BaseModel, targets: Sequence[LinearLayer], rank: int, generator: np.random.Generator
) -> Iterator[None]:
    """Within the block, each target's weight W has an update of this rank, as large as W in Frobenius norm."""
    originals: dict[str, Tensor] = {}
    try:
        for target in targets if rank else ():
            weight = base.model.get_submodule(target.name).weight
            originals[target.name] = weight.detach().clone()
            left, right = (_orthonormal(generator, size, rank) for size in (target.d_out, target.d_in))
            weight.data += weight.norm() / math.sqrt(rank) * (left @ right.T)
        yield
    finally:
        for name, original in originals.items():
            base.model.get_submodule(name).weight.data.copy_(original)


def _orthonormal(generator: np.random.Generator, size: int, rank: int) -> Tensor:
    columns, _ = np.linalg.qr(generator.standard_normal((size, rank)))
    return torch.from_numpy(columns).float()


def _random_task(
    base: BaseModel, labels: int, sizes: Sizes, generator: np.random.Generator, *, teacher: nn.Module | None
) -> Task:
    def split(size: int) -> Split:
        tokens = generator.integers(1, VOCABULARY, (size, LENGTH), dtype=np.int32)
        drawn = generator.integers(labels, size=size) if teacher is None else _draw(teacher, tokens, generator)
        return Split(np.arange(size), Ragged(tokens.ravel(), np.arange(size + 1) * LENGTH), None, drawn)

    # Test first and train last: however long the training, it is judged by the same examples.
    test, validation, train = split(sizes.test), split(sizes.validation), split(sizes.train)
    names = tuple(f"label {number}" for number in range(labels))
    return Task("planted", names, len(names), train, validation, test, pad_token_id=int(base.tokenizer.pad_token_id))


@torch.no_grad()
def _draw(teacher: nn.Module, tokens: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    parts = torch.from_numpy(tokens.astype(np.int64)).split(_ROWS)
    probabilities = torch.cat([teacher(input_ids=part).logits.double().softmax(dim=1) for part in parts]).numpy()
    below = probabilities.cumsum(axis=1) < generator.random((len(tokens), 1))
    # Rounding may leave the last sum below the number drawn.
    labels: np.ndarray = below.sum(axis=1).clip(max=probabilities.shape[1] - 1)
    return labels
