"""What holds a pack's step up: its products, or moving its tensors to and from memory.

python -m benchmarks.speed.limit --out benchmarks/results/limit_cpu.json

MiniLM on docmatch, bfloat16, over an epoch after one that is not timed. The products are those that training must do,
at the machine's peak. What is moved is what every operation of PyTorch reads and writes, at the rate at which the
machine adds two tensors that no cache holds. An operation multiplies while it moves, and small tensors come from
caches, so that a step may take less than the sum of both; operations that are fused would move less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.speed.contestants import CPU, epoch_steps, quiet, step_of_pack
from benchmarks.speed.measure import alone, must_do, peak_flops, seconds
from benchmarks.validity.record import write_record
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.prepare import prepare

_NO_CACHE_HOLDS = 2**28  # bytes


class Moved(TorchDispatchMode):
    """Counts the bytes that operations read and write. Views move nothing, and of a table only what is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = _storages((args, kwargs))
        written = {
            storage: size
            for value, returned in zip(_as_tuple(result), func._schema.returns, strict=False)
            for storage, size in _storages(value).items()
            if storage not in read or (returned.alias_info is not None and returned.alias_info.is_write)
        }
        looks_up = func.overloadpacket in (torch.ops.aten.embedding, torch.ops.aten.index_select)
        if written and not func.overloadpacket.__name__.startswith("empty"):
            self.bytes += sum(written.values()) + sum((written if looks_up else read).values())
        return result


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _storages(values: Any) -> dict[int, int]:
    """The bytes of the tensors among these, once for each memory that they lie in."""
    found: dict[int, int] = {}
    for tensor in tree_leaves(values):
        if isinstance(tensor, Tensor) and not tensor.is_mkldnn:
            storage = tensor.untyped_storage()
            size = min(tensor.numel() * tensor.element_size(), storage.nbytes())
            found[storage.data_ptr()] = max(size, found.get(storage.data_ptr(), 0))
        elif isinstance(tensor, Tensor):
            found[id(tensor)] = tensor.numel() * tensor.element_size()
    return found


def bandwidth() -> float:
    """Bytes a second, read and written, of adding two tensors: the median of ten."""
    one, other, total = (torch.ones(_NO_CACHE_HOLDS // 2, dtype=torch.bfloat16) for _ in range(3))
    times = []
    for _ in range(12):
        started = time.perf_counter()
        torch.add(one, other, out=total)
        times.append(time.perf_counter() - started)
    return 3 * _NO_CACHE_HOLDS / statistics.median(times[2:])


def limit(config: ComparisonConfig, rank: int, trials: int) -> dict[str, float]:
    """Of a step, the mean over an epoch: how long it takes, and how long its products and its traffic would alone."""
    prepared, steps = prepare(config, quiet), epoch_steps(config)
    examples = len(prepared.task.train) / steps
    operations = trials * examples * must_do(prepared, rank)
    moved = Moved()
    with step_of_pack(prepared, rank, trials) as step:
        took = seconds(step, CPU, steps, steps)
        with moved:
            for number in range(steps):
                step(number)
    peak, rate = peak_flops(torch.bfloat16, CPU), bandwidth()
    return {
        "seconds": took,
        "operations": operations,
        "peak of a matrix product, FLOP/s": peak,
        "seconds of the products at the peak": operations / peak,
        "bytes moved": moved.bytes / steps,
        "bytes a second of a sum of tensors": rate,
        "seconds of what is moved": moved.bytes / steps / rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--examples", type=int, default=256, help="of an epoch; default: %(default)s")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128], help="default: %(default)s tokens")
    parser.add_argument("--rank", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 3, 8], help="default: %(default)s")
    options = parser.parse_args()
    findings = {}
    for length in options.lengths:
        config = ComparisonConfig(
            model="embedded",
            task="docmatch",
            max_train_examples=options.examples,
            max_length=length,
            batch_size=16,
            dtype="bfloat16",
            steps=1000,
            device="cpu",
        )
        for trials in options.packs:
            found = alone(limit, config, options.rank, trials)
            findings[f"at most {length} tokens, pack of {trials}"] = found
            print(f"{length} tokens, pack of {trials}: {found}", flush=True)
    settings = {key: value for key, value in vars(options).items() if key != "out"} | {"model": "MiniLM, docmatch"}
    write_record(options.out, "benchmarks.speed.limit", settings, findings)


if __name__ == "__main__":
    main()
