from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.base.load import load_base
from rankwise.base.model import BaseModel
from rankwise.base.shapes import LinearLayer
from rankwise.lora.packable import packable
from rankwise.records import Trial
from tests.lora.packs import LABELS, load_case, logits_of, random_state, targets_of
from tests.models import save_model

TRIALS = [Trial(rank, 4, use_rslora=False, learning_rate=0, seed=rank) for rank in (2, 3)]


@pytest.mark.parametrize(
    ("architecture", "target_modules", "expected"),
    [
        *((name, "all-linear", True) for name in ("bert", "roberta", "distilbert", "gpt2", "llama", "qwen3")),
        ("deberta-v2", "all-linear", True),
        ("deberta-v2", ["key_proj"], True),
        ("deberta-v2", ["value_proj", "dense"], True),
        ("longformer", "all-linear", False),
        ("xlnet", "all-linear", False),
    ],
)
def test_a_pack_computes_what_its_trials_do_alone_where_it_is_said_to(
    architecture: str, target_modules: Any, expected: bool, tmp_path: Path
) -> None:
    base = load_case(architecture, tmp_path)
    targets = targets_of(base, target_modules)
    assert packable(base, targets) == expected
    assert (largest_difference(base, targets) < 1e-5) == expected


def largest_difference(base: BaseModel, targets: Sequence[LinearLayer]) -> float:
    """Between the logits of trials in a pack and alone."""
    states = [(trial, random_state(base, trial, targets)) for trial in TRIALS]
    alone = torch.cat([logits_of(base, targets, [state]) for state in states])
    return float((logits_of(base, targets, states) - alone).abs().max())


AS_V3: dict[str, Any] = {"position_buckets": 8, "norm_rel_ebd": "layer_norm"}
APART: dict[str, Any] = {"share_att_key": False}  # positions have projections of their own


@pytest.mark.parametrize(
    ("changed", "target_modules"),
    [
        *((changed, "all-linear") for changed in (AS_V3, APART, APART | {"pos_att_type": ["c2p"]})),
        (AS_V3, ["query_proj", "value_proj"]),
        (APART, ["query_proj", "value_proj"]),
        (APART, ["key_proj", "pos_key_proj"]),
    ],
)
def test_relative_positions_of_deberta_are_each_trial_s_own(
    changed: dict[str, Any], target_modules: Any, tmp_path: Path
) -> None:
    base = load_base(save_model(tmp_path, "deberta-v2", **changed), num_labels=LABELS, device="cpu", dtype="float32")
    targets = targets_of(base, target_modules)
    assert packable(base, targets)
    assert largest_difference(base, targets) < 1e-5


def test_where_padding_changes_logits_trials_are_not_packed(tmp_path: Path) -> None:
    """A row is padded to the longest of its pack, whose other rows are those of other trials."""
    base = load_case("bert", tmp_path)
    targets = targets_of(base, "all-linear")
    assert packable(base, targets)
    mean_of_all = base.model.base_model.embeddings.register_forward_hook(
        lambda _, inputs, output: output + output.mean(dim=1, keepdim=True)
    )
    assert not packable(base, targets)
    mean_of_all.remove()


def test_a_head_of_whatever_values_has_no_say(tmp_path: Path) -> None:
    base = load_case("bert", tmp_path)
    # As another rounding of longer rows would, where what the head makes of a row is next to nothing.
    noise = 1e-3 * torch.randn(base.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    base.model.base_model.encoder.layer[-1].register_forward_hook(
        lambda _, inputs, output: output + noise * (inputs[0].shape[1] > 7)
    )
    entered: list[torch.Tensor] = []
    head = base.model.get_submodule("classifier")
    hook = head.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    base.model(input_ids=torch.arange(7)[None])
    hook.remove()
    with torch.no_grad():
        head.weight -= head.weight @ torch.linalg.pinv(entered[0]) @ entered[0]
    assert packable(base, targets_of(base))
