from __future__ import annotations

import math

import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from rankwise.train.settings import Schedule, TrainingSettings, steps_of_epochs


@given(st.integers(1, 60), st.floats(0, 0.99), st.sampled_from(["linear", "cosine"]))
def test_the_learning_rate_follows_transformers_schedule(steps: int, warmup_ratio: float, schedule: Schedule) -> None:
    settings = TrainingSettings(steps=steps, warmup_ratio=warmup_ratio, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = transformers.get_scheduler(schedule, optimizer, math.ceil(steps * warmup_ratio), steps)
    for step in range(steps):
        assert math.isclose(settings.rate_factor(step), optimizer.param_groups[0]["lr"], abs_tol=1e-12)
        optimizer.step()
        theirs.step()


@given(st.integers(1, 500), st.integers(1, 20))
def test_evaluations_are_even_and_end_with_the_last_step(steps: int, evaluations: int) -> None:
    at = TrainingSettings(steps=steps, evaluations=evaluations).evaluation_steps
    assert at[-1] == steps
    assert len(at) == len(set(at)) == min(steps, evaluations)
    gaps = [b - a for a, b in zip((0, *at), at, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@given(st.integers(1, 500), st.integers(1, 20))
def test_rungs_begin_with_the_evaluation_at_half_of_the_way_however_it_was_rounded(
    steps: int, evaluations: int
) -> None:
    settings = TrainingSettings(steps=steps, evaluations=evaluations)
    count = min(steps, evaluations)
    halves = [position for position in range(1, count + 1) if 2 * position >= count]
    assert settings.rungs == tuple(settings.evaluation_steps[position - 1] for position in halves)


@given(st.floats(0.01, 10), st.integers(1, 1000), st.integers(1, 64), st.integers(1, 4))
def test_steps_of_epochs_see_every_example_that_often(
    epochs: float, examples: int, batch_size: int, accumulation: int
) -> None:
    steps = steps_of_epochs(epochs, examples, batch_size, accumulation)
    batches = math.ceil(examples / batch_size)
    assert (steps - 1) * accumulation < epochs * batches <= steps * accumulation
