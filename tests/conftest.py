"""Tiny models are faster on one thread, on a busy machine by far; and what is imported is no garbage to look for."""

from __future__ import annotations

import gc

import torch

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
