"""Tokens a second and trial: packs of this project beside PEFT's trials one after another, on the device at hand.

python -m benchmarks.throughput --model smollm2-360m --out benchmarks/results/throughput_cuda.json

The base model has random weights of a catalogued configuration, so nothing is downloaded. Both sides train the same
random tokens, all of them learned, with AdamW on float32 adapters on every linear layer. PEFT's side is a plain loop
over transformers' model with its own loss under autocast, as a Trainer with bf16=True runs it, without the Trainer.
Rounds alternate; medians are reported. The share of the peak counts the products that must be done: each frozen
layer's forward and input gradient once, attention and adapters left out.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from benchmarks.speed.measure import WARM_UP, Step, frozen_flops, peak_flops, seconds
from rankwise.base.load import pick_device, pick_dtype
from rankwise.base.model import DTYPES, BaseModel, describe_base
from rankwise.base.shapes import match_targets
from rankwise.base.source import find_config
from rankwise.lora.attach import attached
from rankwise.records import Trial
from rankwise.tasks.task import Ragged, Split, Task
from rankwise.train.heap import keep_freed_memory
from rankwise.train.loop import PackOptimizer, train_step
from rankwise.train.settings import TrainingSettings

EXAMPLES = 64
PACKS: dict[str, tuple[int, ...]] = {
    "1": (16,),
    "2": (16, 16),
    "4": (16,) * 4,
    "8": (16,) * 8,
    "8 of ranks 4 to 32": (4, 4, 8, 8, 16, 16, 32, 32),
    "16": (16,) * 16,
}


def random_base(model: str, dtype: Any, device: torch.device) -> BaseModel:
    config = find_config(model)
    config.use_cache = False
    with torch.device(device):
        torch.manual_seed(0)
        built = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[dtype], attn_implementation="eager" if device.type == "cpu" else None
        )
    base = describe_base(
        name=model,
        revision="",
        model=built,
        tokenizer=PreTrainedTokenizerBase(),  # no text is read
        device=device,
        dtype=dtype,
        fresh=frozenset(),
        causal=True,
    )
    return dataclasses.replace(base, plain_head=True)


def random_task(vocabulary: int, length: int) -> Task:
    rows = np.random.default_rng(0).integers(0, vocabulary, (EXAMPLES, length))
    learned = np.ones_like(rows)
    learned[:, 0] = 0
    none = np.zeros(EXAMPLES, dtype=np.int64)
    split = Split(
        np.arange(EXAMPLES), Ragged.from_rows(rows.tolist()), None, none, None, Ragged.from_rows(learned.tolist())
    )
    return Task("random", (), vocabulary, split, split, split, pad_token_id=0)


def batches(steps: int, batch_size: int) -> list[np.ndarray]:
    return [np.arange(step * batch_size, (step + 1) * batch_size) % EXAMPLES for step in range(steps)]


def timed_pack(base: BaseModel, task: Task, ranks: Sequence[int], batch_size: int, steps: int) -> dict[str, float]:
    targets = match_targets(base.model, "all-linear")
    trials = [Trial(rank, float(rank), False, 1e-4 * (1 + position), 0) for position, rank in enumerate(ranks)]
    rows = [np.tile(batch, (len(trials), 1)) for batch in batches(steps + WARM_UP, batch_size)]
    with attached(base, trials, targets) as pack:
        optimizer = PackOptimizer(pack, TrainingSettings(steps=1000, batch_size=batch_size))
        return measured(lambda number: train_step(pack, optimizer, task, [rows[number]], number), base.device, steps)


def timed_peft(base: BaseModel, task: Task, rank: int, batch_size: int, steps: int) -> dict[str, float]:
    model = copy.deepcopy(base.model)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    ids = [
        torch.from_numpy(np.stack([task.train.input_ids[row] for row in rows]).astype(np.int64))
        for rows in batches(steps + WARM_UP, batch_size)
    ]

    def step(number: int) -> None:
        batch = ids[number].to(base.device, non_blocking=True)
        with torch.autocast(base.device.type, DTYPES[base.dtype], enabled=base.dtype == "bfloat16"):
            loss = adapted(input_ids=batch, attention_mask=torch.ones_like(batch), labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return measured(step, base.device, steps)


def measured(step: Step, device: torch.device, steps: int) -> dict[str, float]:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    found = {"seconds": seconds(step, device, steps)}
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-360m")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps in a round")
    parser.add_argument("--packs", nargs="+", choices=[*PACKS], default=[*PACKS])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    base = random_base(arguments.model, dtype, device)
    if device.type == "cpu":
        keep_freed_memory()  # as a comparison does; PEFT's side has it too
    task = random_task(base.model.config.vocab_size, arguments.length)
    tokens = arguments.batch_size * arguments.length
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ("PEFT", *arguments.packs)}
    for number in range(arguments.rounds):
        for name in [*times] if number % 2 == 0 else [*reversed(times)]:
            if name == "PEFT":
                found = timed_peft(base, task, 16, arguments.batch_size, arguments.steps)
            else:
                found = timed_pack(base, task, PACKS[name], arguments.batch_size, arguments.steps)
            times[name].append(found)
    peak = peak_flops(DTYPES[dtype], device)
    alone = statistics.median(one["seconds"] for one in times["PEFT"])
    rows = []
    for name, found in times.items():
        count = len(PACKS.get(name, (16,)))
        step = statistics.median(one["seconds"] for one in found)
        rows.append(
            {
                "pack": name,
                "trials": count,
                "step_seconds": step,
                "tokens_per_second_of_all_trials": count * tokens / step,
                "times_peft": count * alone / step,
                "share_of_peak": count * tokens * frozen_flops(base.model) / step / peak,
                "peak_bytes": max((one["peak_bytes"] for one in found if "peak_bytes" in one), default=None),
                "rounds": [one["seconds"] for one in found],
            }
        )
        print({key: value for key, value in rows[-1].items() if key != "rounds"}, flush=True)
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": dtype,
        "measured_peak_flops": peak,
        "model": arguments.model,
        "batch_size": arguments.batch_size,
        "length": arguments.length,
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, peft)},
        "packs": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
