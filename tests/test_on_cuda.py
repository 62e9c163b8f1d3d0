"""What a CPU cannot show: that the same holds on a CUDA device. Skipped without one."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.quantize import Quantization
from rankwise.base.shapes import match_targets
from rankwise.compare.run import run_rank_comparison
from rankwise.lora.attach import initial_state
from rankwise.memory.calibrate import _forget_workspaces
from rankwise.memory.cuda import WORKSPACE_BYTES, workspace_bytes
from rankwise.memory.pack import simulate_pack, trace_pack
from rankwise.records import Trial
from rankwise.tasks.task import Batch
from rankwise.train.loop import run_pack
from rankwise.train.settings import TrainingSettings
from tests.compare.test_instruction_run import conversations, instruction_config, model  # noqa: F401
from tests.models import peft_model, save_model
from tests.train.peft_loop import plain_peft_loop
from tests.train.tasks import token_task
from tests.train.test_language_models import completion_task, labels_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

RANKS = (2, 4, 4, 16)
SETTINGS = TrainingSettings(steps=20, batch_size=8, evaluations=2)


def trials(*, rate: float = 5e-3) -> list[Trial]:
    return [Trial(rank, 2.0 * rank, False, rate * (1 + position), 3) for position, rank in enumerate(RANKS)]


def loaded(directory: Path, architecture: str, quantize: Quantization = "none", **changed: int) -> BaseModel:
    causal = architecture != "bert"
    build = AutoModelForCausalLM.from_config if causal else transformers.AutoModel.from_config
    save_model(directory, architecture, build, **changed)
    return load_base(directory, num_labels=None if causal else 2, dtype="float32", device="cuda:0", quantize=quantize)


def reference(base: BaseModel) -> transformers.PreTrainedModel:
    """The base as a user of transformers and bitsandbytes loads it."""
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=base.quantize == "nf4-double",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head"] if base.causal else ["classifier"],
    )
    auto = AutoModelForCausalLM if base.causal else AutoModelForSequenceClassification
    options = {} if base.quantize == "none" else {"quantization_config": how}
    read = auto.from_pretrained(base.name, dtype=torch.float32, device_map={"": "cuda:0"}, **options)
    read.config.pad_token_id = 0
    return read


def loss_of(base: BaseModel, adapted: torch.nn.Module, batch: Batch) -> torch.Tensor:
    if base.causal:
        loss: torch.Tensor = adapted(**batch.inputs, labels=labels_of(batch)).loss
        return loss
    return functional.cross_entropy(adapted(**batch.inputs).logits, batch.labels)


def compared_with_peft(base: BaseModel, tolerance: float) -> None:
    task, targets = (
        completion_task() if base.causal else token_task(),
        match_targets(base.model, "all-linear", trained=base.trained_modules),
    )
    for trained in run_pack(base, task, trials(), targets, SETTINGS):
        one = trained.result.trial
        adapted = peft_model(
            reference(base),
            task_type="CAUSAL_LM" if base.causal else "SEQ_CLS",
            r=one.rank,
            lora_alpha=one.alpha,
            target_modules=[target.name for target in targets],
        )
        start = initial_state(base, one, targets)
        losses = plain_peft_loop(adapted, start, task, one, SETTINGS, partial(loss_of, base))
        assert trained.result.train_nll == pytest.approx(losses, rel=tolerance)
        assert abs(losses[-1] - losses[0]) > 1e-2


@pytest.mark.parametrize("architecture", ["bert", "llama", "qwen3", "gemma2", "gpt2"])
def test_a_trial_in_a_pack_and_trained_by_peft_has_one_loss_curve(architecture: str, tmp_path: Path) -> None:
    compared_with_peft(loaded(tmp_path / "model", architecture), 1e-4)


@pytest.mark.parametrize("how", ["nf4", "nf4-double"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_over_a_base_in_4_bits_too(architecture: str, how: Quantization, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    heads = {} if architecture == "bert" else {"head_dim": 16}
    compared_with_peft(loaded(tmp_path / "model", architecture, how, **sizes, **heads), 1e-3)


def test_a_trial_that_is_not_a_number_leaves_the_others_bit_for_bit_alone(tmp_path: Path) -> None:
    base = loaded(tmp_path / "model", "llama")
    task, targets = completion_task(), match_targets(base.model, "all-linear")
    sick = Trial(4, math.nan, False, 5e-3, 3)
    healthy = {one.result.trial: one.result for one in run_pack(base, task, trials(), targets, SETTINGS)}
    others = [one for one in trials() if one != trials()[2]]
    beside = {one.result.trial: one.result for one in run_pack(base, task, [*others, sick], targets, SETTINGS)}
    assert beside[sick].status == "diverged"
    assert all(beside[other].train_nll == healthy[other].train_nll for other in others)


def test_the_simulated_pack_is_what_the_device_counts(tmp_path: Path) -> None:
    base = load_base(
        save_model(tmp_path / "model", "llama", AutoModelForCausalLM.from_config, **LARGER),
        num_labels=None,
        dtype="bfloat16",
        device="cuda:0",
    )
    targets, training = match_targets(base.model, "all-linear"), TrainingSettings(steps=2, batch_size=8)
    simulated = simulate_pack(base, trials(), targets, training, 64, cuda=True).peak().bytes
    _forget_workspaces()
    outside = torch.cuda.memory_allocated() - base.bytes
    torch.cuda.reset_peak_memory_stats()
    trace_pack(base, trials(), targets, training, 64)
    measured = torch.cuda.max_memory_allocated() - outside
    more = 2 * (workspace_bytes(base.device) - WORKSPACE_BYTES)
    assert simulated + more == pytest.approx(measured, rel=0.05)


LARGER = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 8,
}


@pytest.mark.parametrize("quantize", ["none", "nf4", "int8"])
def test_a_comparison_ends_and_goes_on(quantize: str, model: Path, tmp_path: Path) -> None:  # noqa: F811
    if quantize != "none":
        pytest.importorskip("bitsandbytes")
    retained = tmp_path / "retained.jsonl"
    retained.write_text(
        "".join(json.dumps({"text": f"some other text {number} of many"}) + "\n" for number in range(20))
    )
    config = instruction_config(
        model,
        conversations(tmp_path / "train.jsonl", 120),
        dtype="bfloat16",
        device="auto",
        quantize=quantize,
        retain=retained,
        full_learning_rates=(1e-3,) if quantize == "none" else None,
    )
    first = run_rank_comparison(config, run=tmp_path / "run")
    again = run_rank_comparison(config, run=tmp_path / "run", resume=True)
    assert [row.nll for row in first.experiments] == [row.nll for row in again.experiments]
    assert all(row.nll < first.baseline.nll for row in first.experiments)
    assert all(row.peak_memory_bytes for row in first.experiments)
