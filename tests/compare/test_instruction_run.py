"""A comparison of instruction tuning, from a file to an adapter that PEFT loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankwise.compare.config import ComparisonConfig
from rankwise.compare.prepare import prepare
from rankwise.compare.preview import plan_rank_comparison
from rankwise.compare.run import run_rank_comparison
from rankwise.errors import UserError
from rankwise.records import RankComparison
from tests.compare.runs import numbers
from tests.models import CHAT_TEMPLATE, save_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("given_costs")


def conversations(path: Path, count: int) -> Path:
    """The answer repeats the question's word: something that a model can learn in a few steps."""
    words = ["one", "two", "tree", "sea", "road", "hill"]
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(count):
            word = words[generator.integers(len(words))]
            turns = [("user", f"say {word} {number}"), ("assistant", f"{word}")]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_model(tmp_path_factory.mktemp("llama"), "llama", AutoModelForCausalLM.from_config)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = CHAT_TEMPLATE, "[SEP]"
    tokenizer.save_pretrained(directory)
    return directory


def instruction_config(model: Path, train: Path, **changed: object) -> ComparisonConfig:
    """Two ranks and two seeds, some seconds."""
    options: dict[str, object] = {
        "ranks": (1, 4),
        "learning_rates": (1e-2,),
        "seeds": 2,
        "steps": 30,
        "evaluations": 2,
        "max_length": 48,
        "dtype": "float32",
        "device": "cpu",
    }
    values = {"model": str(model), "task": "instruction", "train": train} | options | changed
    return ComparisonConfig.from_mapping(values, "a test")


@pytest.fixture(scope="module")
def config(model: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    return instruction_config(model, conversations(tmp_path_factory.mktemp("data") / "train.jsonl", 120))


@pytest.fixture(scope="module")
def finished(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> RankComparison:
    return run_rank_comparison(config, run=tmp_path_factory.mktemp("run") / "first")


def test_every_rank_gains_over_the_model_as_it_is(finished: RankComparison) -> None:
    assert finished.task == "instruction"
    assert finished.accuracy_of == "tokens"
    assert [row.rank for row in finished.experiments] == [1, 4]
    assert all(row.nll < finished.baseline.nll for row in finished.experiments)
    assert {(row.macro_f1, row.mcc) for row in finished.experiments} == {(None, None)}
    assert any("tokens, of which" in note for note in finished.notes)
    assert sum(note.startswith("a hint, no finding: ") for note in finished.notes) == 1


def test_the_document_is_json(finished: RankComparison) -> None:
    document = json.loads((finished.run / "experiments.json").read_text())
    assert document["baseline"].keys() == {"accuracy", "nll", "retained_nll"}
    assert document["baseline"]["retained_nll"] is None
    assert document["full"] is None
    assert document["experiments"][0]["mcc"] is None
    assert [guard["metric"] for guard in document["recommendation"]["guards"]] in (["accuracy"], [])


def test_peft_scores_the_adapter_alike_from_the_raw_texts(
    finished: RankComparison, config: ComparisonConfig, model: Path
) -> None:
    settings = json.loads((finished.adapter / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("CAUSAL_LM", None)
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(finished.adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = Path(str(config.train)).read_text().splitlines()
    scores = {
        file.parent.name: pd.read_parquet(file)
        for file in finished.run.glob(f"trials/r{settings['r']}-*/scores.parquet")
    }
    test = next(iter(scores.values()))
    expected = []
    for example, tokens in zip(test["example_id"], test["tokens"], strict=True):
        text = tokenizer.apply_chat_template(json.loads(lines[example])["messages"], tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logits = adapted(input_ids=ids).logits[0, -tokens - 1 : -1]
        expected.append(functional.cross_entropy(logits, ids[0, -tokens:]).item())
        assert tokenizer.decode(ids[0, -tokens:]).replace(" ", "") in text.replace(" ", "")
    assert any(one["nll"].to_numpy() == pytest.approx(np.array(expected), abs=1e-4) for one in scores.values())


def test_rank_0_has_its_scores_token_by_token(finished: RankComparison) -> None:
    scores = pd.read_parquet(finished.run / "baseline" / "scores.parquet")
    assert list(scores) == ["example_id", "nll", "correct", "tokens"]
    assert finished.baseline.nll == pytest.approx(scores["nll"].mean())
    assert finished.baseline.accuracy == pytest.approx(scores["correct"].mean())


def test_a_run_that_had_fewer_seeds_ends_as_one_that_had_all(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    """But for the last bits, which depend on the packs."""
    run_rank_comparison(replace(config, seeds=1), run=tmp_path / "run")
    extended = run_rank_comparison(config, run=tmp_path / "run", resume=True)
    for one, other in zip(extended.experiments, finished.experiments, strict=True):
        assert (one.rank, one.learning_rate) == (other.rank, other.learning_rate)
        assert one.nll == pytest.approx(other.nll, rel=1e-4)


def test_without_packs_it_ends_with_the_same_bits(config: ComparisonConfig, tmp_path: Path) -> None:
    alone = replace(config, pack_size=1, steps=6)
    run_rank_comparison(alone, run=tmp_path / "whole")
    run_rank_comparison(replace(alone, seeds=1), run=tmp_path / "run")
    run_rank_comparison(alone, run=tmp_path / "run", resume=True)
    mine, other = numbers(tmp_path / "run"), numbers(tmp_path / "whole")
    assert {name: value for name, value in mine.items() if name != "plans"} == {
        name: value for name, value in other.items() if name != "plans"
    }


def test_a_plan_trains_nothing(config: ComparisonConfig) -> None:
    plan = plan_rank_comparison(config)
    assert (plan.trials, plan.steps) == (4, 30)


def test_what_all_linear_means_elsewhere_and_is_not_trained_is_told(tmp_path: Path) -> None:
    """PEFT adapts a mixture's experts and routers as well: other trainers are given the names of what was."""
    mixture = save_model(tmp_path / "mixtral", "mixtral", AutoModelForCausalLM.from_config)
    conversations(tmp_path / "train.jsonl", 60)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = CHAT_TEMPLATE, "[SEP]"
    tokenizer.save_pretrained(mixture)
    config = instruction_config(mixture, tmp_path / "train.jsonl", steps=2, seeds=1)
    comparison = run_rank_comparison(config, run=tmp_path / "run")
    resumed = run_rank_comparison(config, run=tmp_path / "run", resume=True)
    for one in (comparison, resumed):
        assert one.recommendation.target_modules == ("k_proj", "o_proj", "q_proj", "v_proj")
        assert sum("the 6 parameters of experts and routers, such as model.layers" in note for note in one.notes) == 1


def test_layers_that_a_model_does_not_call_stay_frozen_unless_they_are_asked_for(tmp_path: Path) -> None:
    jamba = save_model(tmp_path / "jamba", "jamba", AutoModelForCausalLM.from_config)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = CHAT_TEMPLATE, "[SEP]"
    tokenizer.save_pretrained(jamba)
    config = instruction_config(jamba, conversations(tmp_path / "train.jsonl", 60))
    prepared = prepare(config, lambda text, share=None: None)
    told = "target-modules: model.layers.0.mamba.dt_proj left out: the model does not call it on texts"
    assert told in prepared.notes
    assert not any(target.name.endswith("dt_proj") for target in prepared.targets)
    with pytest.raises(
        UserError, match=r"target-modules: .*\.dt_proj cannot be adapted: the model does not call it on"
    ):
        prepare(replace(config, target_modules=("dt_proj", "q_proj")), lambda text, share=None: None)
