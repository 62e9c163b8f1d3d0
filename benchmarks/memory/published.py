"""Simulated memory of training steps against peaks that others measured and published.

The code that is simulated is the trainer's own, at a version close to the one that was measured: its model, adapters,
precision plugin and loss. Its loop is written out here, with what it keeps alive. Nothing is fitted.

    python -m venv lit && lit/bin/pip install -c constraints.txt torch -e .
    lit/bin/pip install --no-deps litgpt==0.2.0 lightning==2.2.0 pytorch-lightning==2.2.0 torchtune==0.1.0 \
        torchao==0.1 bitsandbytes==0.41.0
    lit/bin/pip install omegaconf sentencepiece tiktoken tqdm scipy jsonargparse docstring_parser \
        lightning-utilities torchmetrics requests "setuptools<81"
    lit/bin/python -m benchmarks.memory.published --out benchmarks/results/memory.json torchtune litgpt
    python -m benchmarks.memory.published --out benchmarks/results/memory.json peft

Each run replaces the rows of the trainers it is given and keeps the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankwise.memory.build import give_storage
from rankwise.memory.cuda import WORKSPACE_BYTES, reserved_bytes, rounded
from rankwise.memory.simulate import fake_tensors
from rankwise.memory.trace import StorageTracker, Trace

GB = 10**9
SHORT = 128  # tokens of the batches around the longest; the peak is not theirs


@dataclass
class Row:
    """A published figure and its estimate; both quantities are given, one of them is the figure's."""

    source: str
    setup: str
    figure_bytes: int
    quantity: Literal["reserved", "allocated"]
    estimate_bytes: int
    relative_error: float
    allocated_bytes: int
    reserved_bytes: int
    peak_at: str
    assumption: str


def row(source: str, setup: str, figure: float, quantity: Any, trace: Trace, assumption: str) -> Row:
    peak = trace.peak(rounded)
    allocated, reserved = peak.bytes, reserved_bytes(trace)
    estimate = allocated if quantity == "allocated" else reserved
    error = round(estimate / figure - 1, 4)
    return Row(source, setup, round(figure), quantity, estimate, error, allocated, reserved, peak.place, assumption)


def claimed(model: nn.Module) -> tuple[StorageTracker, list[nn.Parameter]]:
    """A tracker that knows the model's storages, and the parameters that are trained."""
    tracker = StorageTracker(WORKSPACE_BYTES)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    tracker.claim([*frozen, *model.buffers()], "base_weights")
    tracker.claim(trained, "adapter_weights")
    return tracker, trained


def tokens(batch_size: int, length: int) -> Tensor:
    return torch.ones(batch_size, length, dtype=torch.long)


# --- PEFT's method comparison: its own numbers, and the ratios between its runs


def peft() -> Iterator[Row]:
    from rankwise.base.source import find_config
    from rankwise.memory.build import adapt, meta_step_model
    from rankwise.memory.settings import StepSettings
    from rankwise.memory.simulate import trace_step
    from rankwise.memory.step import make_batch, make_optimizer

    settings = StepSettings(batch_size=4, seq_len=768, optimizer="adamw-foreach")
    config = find_config("meta-llama/Llama-3.2-3B")
    measured = 22_552_772_608

    def kept_step(model: nn.Module, device: torch.device) -> Trace:
        tracker, trained = claimed(model)
        optimizer = make_optimizer(settings.optimizer, trained)
        model.train()
        with tracker:
            for _ in range(2):
                batch = make_batch(model, settings, device)
                optimizer.zero_grad()
                with tracker.phase("forward"):
                    output = model(**batch)
                with tracker.phase("backward"):
                    output.loss.backward()
                with tracker.phase("update"):
                    optimizer.step()
        return tracker.trace

    def own_step(model: nn.Module, device: torch.device) -> Trace:
        return trace_step(model, settings, device)

    steps: dict[str, Callable[[nn.Module, torch.device], Trace]] = {
        "every batch is 768 long and padded; the step of rankwise's estimate, which lets the output go": own_step,
        "every batch is 768 long and padded; the output is kept until the next one replaces it": kept_step,
    }
    for rank, figure, of in (
        (64, measured, ""),
        (32, measured / 1.012, "figure derived from the ratio to r64, 1.012; "),
        (None, measured / 1.012 * 1.74, "figure derived from the ratio to r32, 1.74; pure bf16; "),
    ):
        for assumption, step in steps.items():
            model: nn.Module = meta_step_model(config, settings)
            if rank is None:
                model.requires_grad_(True)
            else:
                model = adapt(model, rank, ["q_proj", "v_proj"], settings)
            with fake_tensors(cuda=True) as device:
                give_storage(model, device)
                trace = step(model, device)
            name = "full" if rank is None else f"q,v r{rank}"
            setup = f"Llama-3.2-3B, {name}, batch 4 x 768, bf16, fp32 adapters, AdamW, L40S"
            yield row("PEFT method comparison", setup, figure, "reserved", trace, of + assumption)


# --- torchtune: lora_finetune_single_device


def torchtune() -> Iterator[Row]:
    length = 1304  # the longest of alpaca-cleaned with Llama-2's tokenizer, by LitGPT's report
    for rank, everything, figure in ((8, False, 15.57), (8, True, 15.87), (64, False, 15.86), (64, True, 17.04)):
        name = "all linear layers and the output" if everything else "q,v"
        yield row(
            "torchtune",
            f"Llama-2-7B, {name}, r{rank}, batch 2 x {length}, bf16, AdamW, activation checkpointing",
            figure * GB,
            "allocated",
            _torchtune_trace(rank, everything, length),
            "sequences as long as alpaca-cleaned's longest, which the data set was not cut to in early versions; "
            "gradients accumulate",
        )


def _torchtune_trace(rank: int, everything: bool, length: int) -> Trace:
    from torchtune import modules, utils
    from torchtune.models.llama2 import lora_llama2_7b
    from torchtune.modules.peft.peft_utils import get_adapter_params, set_trainable_params

    with utils.set_default_dtype(torch.bfloat16), torch.device("meta"):
        model = lora_llama2_7b(
            lora_attn_modules=["q_proj", "v_proj", *(("k_proj", "output_proj") if everything else ())],
            apply_lora_to_mlp=everything,
            apply_lora_to_output=everything,
            lora_rank=rank,
            lora_alpha=2 * rank,
        )
    set_trainable_params(model, get_adapter_params(model))
    utils.set_activation_checkpointing(model, auto_wrap_policy={modules.TransformerDecoderLayer})
    with fake_tensors(cuda=True) as device:
        give_storage(model, device)
        tracker, trained = claimed(model)
        optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.01, foreach=True)
        with tracker:
            # An update, then a batch whose gradients the longest one adds to.
            for batch_length, updates in ((SHORT, True), (SHORT, False), (length, True)):
                input_ids, labels = tokens(2, batch_length), tokens(2, batch_length)
                with tracker.phase("forward"):
                    logits = model(input_ids)
                    logits = logits[..., :-1, :].contiguous()
                    labels = labels[..., 1:].contiguous()
                    logits = logits.transpose(1, 2)
                    loss = nn.CrossEntropyLoss()(logits, labels) / 64
                with tracker.phase("backward"):
                    loss.backward()
                if updates:
                    with tracker.phase("update"):
                        optimizer.step()
                        optimizer.zero_grad(set_to_none=True)
    return tracker.trace


# --- LitGPT: finetune/lora.py


def litgpt() -> Iterator[Row]:
    phi, stablelm, llama = ("phi-1_5", 1044), ("stablelm-base-alpha-3b", 1034), ("Llama-2-7b-hf", 1304)
    figures = [
        (phi, "bf16-true", (4.82, 6.76, 10.68)),
        (stablelm, "bf16-true", (9.69, 12.10, 16.92)),
        (llama, "bf16-true", (21.30, 29.07)),
        (phi, "nf4", (3.78,)),
        (stablelm, "nf4", (6.35,)),
        (llama, "nf4", (14.14,)),
        (phi, "nf4-dq", (3.72,)),
        (stablelm, "nf4-dq", (6.19,)),
        (llama, "nf4-dq", (13.84,)),
    ]
    for (name, length), precision, measured in figures:
        for micro_batch, figure in zip((1, 2, 4), measured, strict=False):
            yield row(
                "LitGPT",
                f"{name}, q,v r8, {precision}, micro-batch {micro_batch} x {length}, A100",
                figure * GB,
                "allocated",
                _litgpt_trace(name, precision, micro_batch, length),
                "the longest sequence is in the first batch, before gradients and optimiser states exist",
            )


def _litgpt_trace(name: str, precision: str, micro_batch: int, length: int) -> Trace:
    import lightning
    import litgpt.utils
    from lightning.fabric.plugins import BitsandbytesPrecision
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable

    config = Config.from_name(name=name, lora_r=8, lora_alpha=16, lora_dropout=0.05, lora_query=True, lora_value=True)
    quantized = precision != "bf16-true"
    fabric = lightning.Fabric(devices=1, accelerator="cpu", precision="32-true" if quantized else precision)
    if quantized:  # lightning gives this plugin to none but a CUDA device
        fabric._precision = fabric.strategy.precision = BitsandbytesPrecision(precision, torch.bfloat16)
    with fabric._precision.module_init_context(), torch.device("meta"):
        model = GPT(config)
    mark_only_lora_as_trainable(model)
    model = fabric.setup_module(model, move_to_device=False)
    with fake_tensors(cuda=True) as device:
        scales = list(_quantize(model, double=precision == "nf4-dq")) if quantized else []
        give_storage(model, device)
        model.max_seq_length = length
        model.train()
        tracker, trained = claimed(model)
        tracker.claim(scales, "base_weights")
        # bitsandbytes' paged AdamW has no kernels here; the states of its first step come after the peak.
        optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.02, betas=(0.9, 0.95), foreach=True)
        # The number of targets, which a fake tensor cannot tell, is not below 1.
        litgpt.utils.max = lambda _, count: count
        with tracker:
            for batch_length in (length, SHORT):
                input_ids, targets = tokens(micro_batch, batch_length), tokens(micro_batch, batch_length)
                with tracker.phase("forward"):
                    logits = model(input_ids, lm_head_chunk_size=128)
                    logits[-1] = logits[-1][..., :-1, :]
                    loss = litgpt.utils.chunked_cross_entropy(logits, targets[..., 1:])
                with tracker.phase("backward"):
                    fabric.backward(loss / 128)
            with tracker.phase("update"):
                optimizer.step()
                optimizer.zero_grad()
    return tracker.trace


def _quantize(model: nn.Module, *, double: bool) -> Iterator[Tensor]:
    """Give every linear layer the packed weight that bitsandbytes 0.41 holds; yields what belongs to it."""
    import bitsandbytes

    bitsandbytes.functional.dequantize_4bit = _dequantize
    for module in model.modules():
        if not isinstance(module, bitsandbytes.nn.Linear4bit):
            continue
        numel = module.out_features * module.in_features
        blocks = -(-numel // 64)
        absmax = torch.zeros(blocks, dtype=torch.uint8 if double else torch.float32)
        nested = [torch.zeros(()), [torch.zeros(-(-blocks // 256)), torch.zeros(256)]] if double else None
        code = torch.zeros(16)
        shape = torch.Size((module.out_features, module.in_features))
        module.weight = nn.Parameter(torch.zeros(-(-numel // 2), 1, dtype=torch.uint8), requires_grad=False)
        # Lightning quantises from float16, so it is to float16 that bitsandbytes dequantises.
        module.weight.quant_state = [absmax, shape, torch.float16, 64, nested, "nf4", code]
        yield from (absmax, code)
        if nested is not None:
            yield from (nested[0], *nested[1])


def _dequantize(packed: Tensor, quant_state: list[Any]) -> Tensor:
    absmax, shape, dtype, _, nested, *_ = quant_state
    if nested is not None:
        absmax = torch.empty(absmax.shape, dtype=torch.float32)
        absmax += nested[0]
    out = torch.empty(shape, dtype=dtype)
    return out.t() if packed.shape[0] == 1 else out


TRAINERS = {"peft": peft, "torchtune": torchtune, "litgpt": litgpt}
SOURCES = {"peft": "PEFT method comparison", "torchtune": "torchtune", "litgpt": "LitGPT"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("trainers", nargs="+", choices=list(TRAINERS), help="whose figures")
    arguments = parser.parse_args()
    rows = [asdict(one) for trainer in arguments.trainers for one in TRAINERS[trainer]()]
    replaced = {SOURCES[trainer] for trainer in arguments.trainers}
    if arguments.out.exists():
        rows += [one for one in json.loads(arguments.out.read_text()) if one["source"] not in replaced]
    order = list(SOURCES.values())
    rows.sort(key=lambda one: order.index(one["source"]))
    arguments.out.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    for one in rows:
        print(f"{one['relative_error']:+7.2%}  {one['quantity']:9}  {one['source']}: {one['setup']}")


if __name__ == "__main__":
    main()
