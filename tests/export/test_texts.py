"""What each trainer is told, in its own words."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st

from rankwise import UserError, export_recommendation
from rankwise.compare.config import ComparisonConfig
from rankwise.export.axolotl import axolotl_config
from rankwise.export.finding import Finding
from rankwise.export.litgpt import litgpt_config
from rankwise.export.llama_factory import llama_factory_config
from rankwise.export.torchtune import torchtune_config
from rankwise.export.trl import trl_config
from rankwise.export.unsloth import unsloth_script
from tests.export.runs import finding, made_run

YAMLS: dict[str, Callable[[Finding], str]] = {
    "trl": trl_config,
    "axolotl": axolotl_config,
    "llama-factory": llama_factory_config,
    "torchtune": torchtune_config,
    "litgpt": litgpt_config,
}
TEXTS = YAMLS | {"unsloth": unsloth_script}
TRAINERS = tuple(TEXTS)
FIELDS = Path(__file__).parent / "fields"  # names that a version takes, read from its package


def calls(script: str) -> dict[str, dict[str, Any]]:
    """The keyword arguments of each call in a script that are plain values."""
    found: dict[str, dict[str, Any]] = {}
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found[name] = {
                str(keyword.arg): ast.literal_eval(keyword.value)
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Constant | ast.List)
            }
    return found


def settings(trainer: str, of: Finding) -> dict[str, Any]:
    """What a text says, flat: `train.max_steps`."""
    text = TEXTS[trainer](of)
    document = calls(text) if trainer == "unsloth" else yaml.safe_load(text)
    return dict(flat(document))


def flat(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, dict) and name != "bnb_config_kwargs":
            yield from flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def comments(trainer: str, of: Finding) -> list[str]:
    return [line[2:] for line in TEXTS[trainer](of).splitlines() if line.startswith("# ")]


# rank, alpha, rsLoRA (None where the trainer has no word), learning rate, steps, warm-up steps, batch, length
NAMES: dict[str, tuple[str, str, str | None, str, str, str, str, str]] = {
    "trl": (
        *("lora_r", "lora_alpha", "use_rslora", "learning_rate", "max_steps", "warmup_steps"),
        *("per_device_train_batch_size", "max_length"),
    ),
    "axolotl": (
        *("lora_r", "lora_alpha", "peft_use_rslora", "learning_rate", "max_steps", "warmup_steps"),
        *("micro_batch_size", "sequence_len"),
    ),
    "llama-factory": (
        *("lora_rank", "lora_alpha", "use_rslora", "learning_rate", "max_steps", "warmup_steps"),
        *("per_device_train_batch_size", "cutoff_len"),
    ),
    "torchtune": (
        *("model.lora_rank", "model.lora_alpha", None, "optimizer.lr", "max_steps_per_epoch"),
        *("lr_scheduler.num_warmup_steps", "batch_size", "tokenizer.max_seq_len"),
    ),
    "litgpt": (
        *("lora_r", "lora_alpha", None, "optimizer.init_args.lr", "train.max_steps", "train.lr_warmup_steps"),
        *("train.micro_batch_size", "train.max_seq_length"),
    ),
    "unsloth": (
        *("get_peft_model.r", "get_peft_model.lora_alpha", "get_peft_model.use_rslora", "SFTConfig.learning_rate"),
        *("SFTConfig.max_steps", "SFTConfig.warmup_steps", "SFTConfig.per_device_train_batch_size"),
        "SFTConfig.max_length",
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Finding:
    return finding(tmp_path_factory.mktemp("runs") / "plain", config={"schedule": "cosine"})


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_whole_training_is_said(trainer: str, plain: Finding) -> None:
    said, names = settings(trainer, plain), NAMES[trainer]
    values = [None if name is None else said[name] for name in names]
    rslora = None if names[2] is None else False
    assert values == [16, 32, rslora, 3e-4, 200, 20, 8, 512]
    assert all(type(said[name]) is int for name in names[:2])
    assert said.get("lora_dropout", said.get("model.lora_dropout", said.get("get_peft_model.lora_dropout"))) == 0
    assert "owner/model" in TEXTS[trainer](plain)
    assert [value for name, value in said.items() if "weight_decay" in name] == [0]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_name_is_one_that_the_trainer_takes(trainer: str, tmp_path: Path) -> None:
    taken = set((FIELDS / f"{trainer}.txt").read_text().split("\n", 1)[1].split())
    for number, changed in enumerate(VARIANTS):
        said = settings(trainer, finding(tmp_path / str(number), **changed))
        if trainer == "unsloth":  # its SFTConfig is TRL's
            trl = (FIELDS / "trl.txt").read_text().split()
            assert {name.removeprefix("SFTConfig.") for name in said if name.startswith("SFTConfig.")} <= set(trl)
            said = {name: value for name, value in said.items() if name.startswith(("from_pretrained", "get_peft"))}
        assert said.keys() <= taken


VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"base": "nf4", "answer": {"use_rslora": True, "alpha": 16.0}},
    {"base": "nf4-double", "config": {"schedule": "cosine", "gradient_checkpointing": True}},
    {"base": "int8", "revision": None, "base_model": "/models/llama"},
    {"base": "float32", "dtype": "float32", "answer": {"target_modules": ("q_proj",)}, "leaves": ("q_proj",)},
    {"answer": {"target_modules": ("q_proj", "lm_head")}, "leaves": ("q_proj", "lm_head")},
)

RANKS = st.integers(1, 512)
ALPHAS = st.one_of(st.integers(1, 2048).map(float), st.floats(0.5, 2048))


@few(max_examples=30)
@given(rank=RANKS, alpha=ALPHAS, rslora=st.booleans())
@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_trainer_scales_as_was_measured(
    trainer: str, plain: Finding, rank: int, alpha: float, rslora: bool
) -> None:
    """A rank beside another's alpha trains something else; whole numbers are rounded, and that is said."""
    of = replace(plain, rank=rank, alpha=alpha, use_rslora=rslora)
    said, (r, a, rule, *_) = settings(trainer, of), NAMES[trainer]
    by_root = rule is not None and said[rule]
    measured = alpha / (rank**0.5 if rslora else rank)
    scaling = said[a] / (said[r] ** 0.5 if by_root else said[r])
    if scaling != pytest.approx(measured):
        exact = measured * (said[r] ** 0.5 if by_root else said[r])
        assert abs(said[a] - exact) <= 0.5
        assert any("must be whole here" in comment for comment in comments(trainer, of))
        assert trainer in ("axolotl", "litgpt")
    assert said[r] == rank
    assert any("rsLoRA has no word here" in comment for comment in comments(trainer, of)) == (rslora and rule is None)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("status", "first"),
    [
        ("resolved", "resolved: rank 16, measured by rankwise for owner/model"),
        ("unresolved", "UNRESOLVED, until more is known: rank 16, "),
        ("not_plateaued", "NOT PLATEAUED, until a larger rank is tried: rank 16, "),
    ],
)
def test_the_first_line_says_what_the_answer_is_worth(trainer: str, status: str, first: str, plain: Finding) -> None:
    answer = replace(plain.recommendation, status=status)
    of = replace(plain, comparison=replace(plain.comparison, recommendation=answer))
    lines = comments(trainer, of)
    assert lines[0].startswith(first)
    assert "holds for: 200 steps of 8 of the 2,000 training examples, 0.8 passes over them" in lines


@few(max_examples=30)
@given(text=st.text())
@pytest.mark.parametrize("trainer", TRAINERS)
def test_no_text_of_a_run_breaks_out_of_its_comment(trainer: str, plain: Finding, text: str) -> None:
    answer = replace(plain.recommendation, reason=text, holds_for=text, unknown=(text,))
    of = replace(plain, comparison=replace(plain.comparison, recommendation=answer))
    assert settings(trainer, of) == settings(trainer, plain)


@few(max_examples=30)
@given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@pytest.mark.parametrize("trainer", [trainer for trainer in TRAINERS if trainer != "torchtune"])
def test_a_models_name_is_a_value_and_no_more(trainer: str, plain: Finding, name: str) -> None:
    said = settings(trainer, replace(plain, base_model=f"a: {name}", revision=None))
    assert f"a: {name}" in said.values()


@pytest.mark.parametrize(
    ("trainer", "targets", "said"),
    [
        ("trl", ("q_proj", "v_proj"), {"lora_target_modules": ["q_proj", "v_proj"]}),
        # One name in a list would reach PEFT as a regular expression that matches no whole name.
        ("trl", ("q_proj",), {"lora_target_modules": r"(?:.*\.)?q_proj"}),
        ("trl", ".*q_proj", {"lora_target_modules": ".*q_proj"}),
        ("axolotl", "all-linear", {"lora_target_linear": True}),
        ("axolotl", ("q_proj", "v_proj"), {"lora_target_modules": ["q_proj", "v_proj"]}),
        ("axolotl", ".*q_proj", {"lora_target_modules": ".*q_proj"}),
        ("llama-factory", "all-linear", {"lora_target": "all"}),
        ("llama-factory", ("q_proj", "v_proj"), {"lora_target": "q_proj,v_proj"}),
        (
            "llama-factory",
            ".*[qv]_proj{1,1}",
            {"lora_target": ",".join(f"model.layers.{block}.self_attn.{leaf}" for block in (0, 1) for leaf in "qv")},
        ),
        ("unsloth", "all-linear", {"get_peft_model.target_modules": "all-linear"}),
        ("unsloth", ("q_proj",), {"get_peft_model.target_modules": ["q_proj"]}),
        (
            "torchtune",
            ("o_proj", "gate_proj", "up_proj", "down_proj"),
            {"model.lora_attn_modules": ["output_proj"], "model.apply_lora_to_mlp": True},
        ),
        ("torchtune", ("q_proj", "lm_head"), {"model.apply_lora_to_mlp": False, "model.apply_lora_to_output": True}),
        (
            "litgpt",
            ("q_proj", "v_proj"),
            {
                **{"lora_query": True, "lora_key": False, "lora_value": True},
                **{"lora_projection": False, "lora_mlp": False, "lora_head": False},
            },
        ),
    ],
)
def test_target_modules(trainer: str, targets: str | tuple[str, ...], said: dict[str, Any], tmp_path: Path) -> None:
    leaves: tuple[str, ...] = ("q_proj", "v_proj") if isinstance(targets, str) else targets
    of = finding(tmp_path / "run", answer={"target_modules": targets}, leaves=leaves)
    if targets == ".*[qv]_proj{1,1}":
        of = replace(of, targets=tuple(name.removesuffix("_proj") for name in of.targets))
    assert settings(trainer, of).items() >= said.items()


@pytest.mark.parametrize("trainer", ["torchtune", "litgpt"])
@pytest.mark.parametrize(
    ("targets", "leaves", "line"),
    [
        (".*q_proj", ("q_proj",), "adapts kinds of layers, in every block, not '.*q_proj': give --to peft, or trl"),
        (("layers.0.q_proj",), ("q_proj",), "adapts kinds of layers, in every block"),
        ("all-linear", ("c_attn", "c_proj"), "has no name for the adapted layers c_attn, c_proj: give --to peft"),
        (("up_proj", "gate_proj"), ("up_proj", "gate_proj"), "three layers together, not gate_proj, up_proj: give"),
    ],
)
def test_switches_that_cannot_say_it(
    trainer: str, targets: str | tuple[str, ...], leaves: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    run = made_run(tmp_path / "run", answer={"target_modules": targets}, leaves=leaves)
    with pytest.raises(UserError, match=re.escape(line)):
        export_recommendation(run, trainer)


@pytest.mark.parametrize(
    ("trainer", "base", "said", "comment"),
    [
        ("trl", "nf4", {"load_in_4bit": True, "use_bnb_nested_quant": False}, None),
        ("trl", "nf4-double", {"load_in_4bit": True, "use_bnb_nested_quant": True}, None),
        ("trl", "int8", {"load_in_8bit": True}, "int8: the comparison rounded weights alone; TRL rounds activations"),
        ("axolotl", "nf4", {"adapter": "qlora", "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}}, None),
        ("axolotl", "int8", {"adapter": "lora", "load_in_8bit": True}, "int8: the comparison"),
        ("llama-factory", "nf4", {"quantization_bit": 4, "double_quantization": False}, None),
        ("llama-factory", "int8", {"quantization_bit": 8}, "int8: the comparison"),
        ("torchtune", "nf4", {"model.quantize_base": True}, "nf4: torchtune rounds the scales"),
        ("torchtune", "int8", {}, "int8 has no word here"),
        ("litgpt", "nf4", {"quantize": "bnb.nf4"}, None),
        ("litgpt", "nf4-double", {"quantize": "bnb.nf4-dq"}, None),
        ("litgpt", "int8", {"quantize": "bnb.int8-training"}, "int8: the comparison"),
        ("unsloth", "nf4", {"from_pretrained.load_in_4bit": True}, "nf4: Unsloth rounds the scales"),
        ("unsloth", "int8", {"from_pretrained.load_in_8bit": True, "from_pretrained.load_in_16bit": False}, "int8"),
    ],
)
def test_quantisation(trainer: str, base: str, said: dict[str, Any], comment: str | None, tmp_path: Path) -> None:
    of = finding(tmp_path / "run", base=base)
    assert settings(trainer, of).items() >= said.items()
    told = [line for line in comments(trainer, of) if line.startswith(("nf4", "int8"))]
    assert told == [] if comment is None else (len(told) == 1 and told[0].startswith(comment))


@pytest.mark.parametrize(
    ("trainer", "completions", "prompts"),
    [
        ("trl", "assistant_only_loss: true", "completion_only_loss: false"),
        ("axolotl", {"train_on_inputs": False}, {"train_on_inputs": True}),
        ("llama-factory", {"train_on_prompt": False}, {"train_on_prompt": True}),
        ("unsloth", "assistant_only_loss=True to SFTConfig", "completion_only_loss=False to SFTConfig"),
        ("torchtune", "give dataset train_on_input: false", "give dataset train_on_input: true"),
        ("litgpt", "add data.init_args.mask_prompt: true", "leave data.init_args.mask_prompt at false"),
    ],
)
def test_which_tokens_are_learned(
    trainer: str, completions: str | dict[str, Any], prompts: str | dict[str, Any], plain: Finding
) -> None:
    for learn_prompts, said in ((False, completions), (True, prompts)):
        of = replace(plain, learn_prompts=learn_prompts)
        if isinstance(said, dict):
            assert settings(trainer, of).items() >= said.items()
        else:
            (told,) = (line for line in comments(trainer, of) if line.endswith(said))
            assert told.startswith("prompts were learned" if learn_prompts else "completions alone were learned")


def test_a_linear_schedule_is_litgpts_loss_and_torchtunes_loan(tmp_path: Path) -> None:
    of = finding(tmp_path / "run")
    assert of.settings.schedule == "linear"
    assert any(line.startswith("the schedule linear has no word here") for line in comments("litgpt", of))
    assert settings("torchtune", of)["lr_scheduler._component_"] == "transformers.get_linear_schedule_with_warmup"


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_bases_dropout_is_told_where_a_trainer_keeps_it(trainer: str, plain: Finding) -> None:
    told = any("set the base model's own to 0, too" in comment for comment in comments(trainer, plain))
    assert told == (trainer not in ("torchtune", "litgpt"))


@pytest.mark.parametrize("trainer", ["trl", "axolotl"])
def test_which_end_of_a_long_example_goes_is_told(trainer: str, plain: Finding) -> None:
    assert any(line.startswith("long examples: the comparison cut the beginning") for line in comments(trainer, plain))


def test_float32_is_not_left_to_a_default(tmp_path: Path) -> None:
    of = finding(tmp_path / "run", base="float32", dtype="float32")
    assert settings("trl", of).items() >= {"bf16": False, "dtype": "float32"}.items()
    assert settings("litgpt", of)["precision"] == "32-true"
    assert settings("torchtune", of)["dtype"] == "fp32"


def test_no_warm_up_does_not_divide_by_nothing_in_litgpt(tmp_path: Path) -> None:
    of = finding(tmp_path / "run", config={"warmup_ratio": 0.0})
    assert settings("litgpt", of)["train.lr_warmup_steps"] == 1
    assert "no warm-up has no word here: one step" in comments("litgpt", of)
    assert settings("trl", of)["warmup_steps"] == 0


def test_epochs_hold_the_steps_that_were_measured(tmp_path: Path) -> None:
    of = finding(tmp_path / "run", config={"steps": 600, "gradient_accumulation": 2})
    assert of.passes == pytest.approx(4.8)
    said = settings("torchtune", of)
    assert (said["epochs"], said["max_steps_per_epoch"]) == (5, 120)
    said = settings("litgpt", of)
    assert (said["train.epochs"], said["train.max_steps"], said["train.global_batch_size"]) == (6, 600, 16)


def test_a_run_from_before_an_option_existed_has_its_default(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    text = (run / "comparison.json").read_text().replace('"learn_prompts": false, ', "")
    assert "learn_prompts" not in text
    (run / "comparison.json").write_text(text)
    said = yaml.safe_load(export_recommendation(run, "axolotl").text or "")
    assert said["train_on_inputs"] is ComparisonConfig.default("learn_prompts")
