"""How long `rankwise inspect` takes for a large adapter, and how much memory.

python -m benchmarks.spectrum

The adapter is random and built on the spot: rank 64 on all 224 linear layers of Llama 2 7B, in bfloat16.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rankwise.base.catalogue import catalogue, entry_config
from rankwise.base.shapes import linear_layers

RANK = 64


def write_adapter(directory: Path) -> int:
    """Returns how many modules it has."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(entry_config(catalogue()["llama-2-7b"]))
    layers = [layer for layer in linear_layers(model) if layer.name != "lm_head"]
    tensors = {}
    for layer in layers:
        prefix = f"base_model.model.{layer.name}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, layer.d_in, dtype=torch.bfloat16)
        tensors[f"{prefix}.lora_B.weight"] = 0.01 * torch.randn(layer.d_out, RANK, dtype=torch.bfloat16)
    LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear").save_pretrained(str(directory))
    save_file(tensors, directory / SAFETENSORS_WEIGHTS_NAME)
    return len(layers)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        modules = write_adapter(Path(place))
        command = [sys.executable, "-m", "rankwise", "inspect", place]
        started = time.perf_counter()
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
        seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    print(f"{modules} modules of rank {RANK}: {seconds:.1f} s, {cpu:.1f} s of CPU time, peak {peak / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
