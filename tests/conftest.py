"""Tiny models are faster on one thread, on a busy machine by far."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
