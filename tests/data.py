"""Sentences of made-up words whose label is one of the words, as a user's CSV file would hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def sentences(count: int, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    words = ["one", "two", "tree", "sea", "road", "hill"]
    texts = []
    for number, label in enumerate(labels):
        chosen = [words[word] for word in generator.integers(0, len(words), generator.integers(2, 6))]
        chosen.insert(int(generator.integers(0, len(chosen) + 1)), "bad" if label == 0 else "good")
        texts.append(" ".join([*chosen, str(number)]))
    return pd.DataFrame({"sentence": texts, "label": np.array(["no", "yes"])[labels]})


def write_sentences(path: Path, count: int, seed: int = 0) -> Path:
    sentences(count, seed).to_csv(path, index=False)
    return path
