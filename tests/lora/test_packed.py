from __future__ import annotations

import math
from itertools import accumulate

import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from scipy import stats
from torch.nn import functional

from rankwise.lora.frozen import FrozenLinear
from rankwise.lora.packed import PackedLinear, PackedLora, generator_for, initial_a


@given(
    seed=st.integers(0, 2**40),
    name=st.text(min_size=1, max_size=20),
    ranks=st.lists(st.integers(1, 70), min_size=2, max_size=4),
    d_in=st.integers(1, 50),
)
def test_a_smaller_rank_starts_with_the_first_rows_of_every_larger_one(
    seed: int, name: str, ranks: list[int], d_in: int
) -> None:
    largest = initial_a(seed, name, max(ranks), d_in)
    for rank in ranks:
        assert torch.equal(initial_a(seed, name, rank, d_in), largest[:rank])


def test_seeds_and_modules_start_differently() -> None:
    starts = [initial_a(seed, name, 4, 8) for seed in (0, 1, 2**32) for name in ("query", "value")]
    assert len({tuple(start.flatten().tolist()) for start in starts}) == 6


def test_a_start_neither_reads_nor_disturbs_the_global_generator() -> None:
    torch.manual_seed(0)
    start, then = initial_a(3, "query", 4, 8), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(then, torch.rand(1))
    assert torch.equal(start, initial_a(3, "query", 4, 8))


def test_a_seed_means_the_same_in_every_version() -> None:
    # Runs are resumed and compared by it; Python's own hash would differ from process to process.
    assert generator_for(0, "query").initial_seed() == 10054327653359103477


def test_a_starts_in_the_distribution_that_peft_draws_from() -> None:
    ours, bound = initial_a(0, "query", 64, 768), 1 / math.sqrt(768)
    assert 0.999 * bound < ours.abs().max() <= bound
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(768, 8))
        inject_adapter_in_model(LoraConfig(r=64, target_modules=["0"]), layer)
    theirs = layer[0].lora_A.default.weight.detach()
    assert stats.ks_2samp(ours.flatten(), theirs.flatten()).pvalue > 0.01


def parts_of(*trials: int) -> list[slice]:
    """Parts of so many trials each."""
    stops = list(accumulate(trials))
    return [slice(stop - count, stop) for count, stop in zip(trials, stops, strict=True)]


@given(
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True).map(sorted),
    counts=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    d_in=st.integers(1, 7),
    d_out=st.integers(1, 7),
    bias=st.booleans(),
    needs_input_grad=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_backward_written_by_hand_is_what_autograd_makes_of_the_formula(
    ranks: list[int], counts: list[int], d_in: int, d_out: int, bias: bool, needs_input_grad: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = torch.nn.Linear(d_in, d_out, bias=bias).requires_grad_(False)
    parts = parts_of(*counts[: len(ranks)])
    trials = parts[-1].stop
    factors = [
        torch.nn.Parameter(random(part.stop - part.start, rank, size))
        for part, rank in zip(parts, ranks, strict=True)
        for size in (d_in, d_out)
    ]
    x = random(2 * trials, 3, d_in).requires_grad_(needs_input_grad)
    direction = random(2 * trials, 3, d_out)
    inputs = [*factors, *([x] if needs_input_grad else [])]

    y = PackedLora(FrozenLinear(base, None), parts, factors)(x)
    ours = torch.autograd.grad((y * direction).sum(), inputs)

    blocks = []
    for part, a, b in zip(parts, factors[::2], factors[1::2], strict=True):
        for trial, of_a, of_b in zip(range(part.start, part.stop), a, b, strict=True):
            rows = x[2 * trial : 2 * trial + 2]
            blocks.append(base(rows) + functional.linear(functional.linear(rows, of_a), of_b.t()))
    expected = torch.cat(blocks)
    theirs = torch.autograd.grad((expected * direction).sum(), inputs)

    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def test_a_head_computes_in_float32_under_a_bfloat16_base() -> None:
    weight, bias = torch.nn.Parameter(torch.randn(3, 4, 8)), torch.nn.Parameter(torch.randn(3, 4))
    x = torch.randn(6, 5, 8, dtype=torch.bfloat16)
    y = PackedLinear(weight, bias)(x)
    assert y.dtype == torch.float32
    for trial in range(3):
        rows = slice(2 * trial, 2 * trial + 2)
        torch.testing.assert_close(y[rows], functional.linear(x[rows].float(), weight[trial], bias[trial]))
