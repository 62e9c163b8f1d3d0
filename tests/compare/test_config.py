from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rankwise.compare.config import ComparisonConfig, TrackerName
from rankwise.compare.config_file import read_config_file
from rankwise.compare.trackers import BACK_ENDS
from rankwise.errors import UserError

ranks = st.lists(st.integers(1, 512), min_size=1, max_size=8, unique=True)
rates = st.lists(st.floats(1e-7, 1.0), min_size=1, max_size=5, unique=True)
blanks = st.sampled_from(["", " ", "  "])


def config(**values: Any) -> ComparisonConfig:
    return ComparisonConfig(**({"train": "train.csv"} | values))


def refusal(**values: Any) -> str:
    with pytest.raises(UserError) as error:
        config(**values)
    assert str(error.value).isprintable()
    return str(error.value)


@given(ranks, rates, blanks)
def test_lists_are_the_same_from_text_from_yaml_and_from_python(
    ranks: list[int], rates: list[float], blank: str
) -> None:
    made = config(ranks=tuple(ranks), learning_rates=tuple(rates))
    assert made.ranks == tuple(sorted(ranks))
    assert made.learning_rates == tuple(sorted(rates))
    as_text = {"ranks": f",{blank}".join(map(str, ranks)), "learning_rates": f"{blank},".join(map(repr, rates))}
    assert config(**as_text) == made
    from_yaml = yaml.safe_load(yaml.safe_dump({"train": "train.csv", "ranks": ranks, "learning-rates": rates}))
    assert ComparisonConfig.from_mapping(from_yaml, "a.yaml") == made


@given(ranks)
def test_lists_may_come_as_whatever_python_holds_them_in(ranks: list[int]) -> None:
    made = config(ranks=ranks)
    for held in (set(ranks), frozenset(ranks), np.array(ranks), torch.tensor(ranks), pd.Series(ranks)):
        assert config(ranks=held) == made
    assert config(ranks=range(4, 17, 4)).ranks == (4, 8, 12, 16)
    assert config(ranks=np.array(8)).ranks == (8,)
    assert config(learning_rates=np.array([1e-3, 1e-4])).learning_rates == (1e-4, 1e-3)
    assert config(learning_rates=np.float32(1e-3)).learning_rates == (1e-3,)
    assert config(full_learning_rates=np.array([1e-4, 1e-3])).full_learning_rates == (1e-4, 1e-3)
    assert config(report_to=np.array(["wandb"])).report_to == ("wandb",)
    assert config(target_modules=set("zyxwvutsrq")).target_modules == tuple("qrstuvwxyz")
    assert "is not one value" in refusal(scalings={"rslora", "alpha/rank"})  # the first of which would answer


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "ranks": ranks.map(tuple),
            "learning_rates": rates.map(tuple),
            "alpha": st.one_of(st.sampled_from(["rank", "2rank"]), st.floats(0.5, 512)),
            "rslora": st.booleans(),
            "keep": st.floats(0.01, 0.99),
            "margin": st.one_of(st.none(), st.floats(1e-6, 0.9)),
            "metric": st.sampled_from(["nll", "accuracy"]),
            "seeds": st.integers(1, 9),
            "steps": st.integers(1, 10_000),
            "target_modules": st.sampled_from(["all-linear", ("query", "value"), r".*\.(query|value)"]),
            "schedule": st.sampled_from(["linear", "cosine"]),
            "report_to": st.sampled_from(["none", "tensorboard", ("wandb", "mlflow")]),
            "max_test_examples": st.one_of(st.none(), st.integers(2, 10**6)),
        },
    )
)
def test_what_a_run_directory_keeps_makes_the_same_configuration_again(values: dict[str, Any]) -> None:
    if values.get("margin") is not None:
        values.pop("keep", None)
    made = config(**values)
    assert ComparisonConfig.from_mapping(yaml.safe_load(yaml.safe_dump(made.to_dict())), "a.yaml") == made


@given(st.text("0123456789,.-+ eé\n", max_size=12))
def test_whatever_is_given_as_ranks_is_a_list_of_ranks_or_one_line(text: str) -> None:
    items = [item.strip() for item in text.split(",")]
    numbers = [int(item) for item in items if re.fullmatch(r"\+?0*[1-9][0-9]*", item)]
    if len(set(numbers)) == len(items) and max(numbers) <= 10**9:
        assert config(ranks=text).ranks == tuple(sorted(numbers))
    else:
        assert refusal(ranks=text).startswith("ranks: ")


def test_a_model_may_be_a_path() -> None:
    assert config(model=Path("some/model")).model == "some/model"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"ranks": "4,0"}, "ranks: '0' is not a whole number of at least 1"),
        ({"ranks": "-8"}, "ranks: '-8' is not a whole number of at least 1"),
        ({"ranks": "8,4,8"}, "ranks: rank 8 given more than once"),
        ({"ranks": []}, "ranks: no rank is given"),
        ({"learning_rates": []}, "learning-rates: no learning rate is given"),
        ({"full_learning_rates": []}, "full-learning-rates: no learning rate is given"),
        ({"scalings": []}, "scalings: no scaling is given"),
        ({"bases": []}, "bases: no base is given"),
        ({"ranks": ""}, "ranks: '' is not a whole number of at least 1"),
        ({"ranks": [True]}, "ranks: 'True' is not a whole number of at least 1"),
        ({"learning_rates": "1e-3,nan"}, "learning-rates: 'nan' is not a number above 0"),
        ({"learning_rates": "0.001,1e-3"}, "learning-rates: learning rate 0.001 given more than once"),
        ({"alpha": "half"}, "alpha: 'half' is not rank, 2rank or a number above 0"),
        ({"seeds": 1.5}, "seeds: 1.5 is not a whole number of at least 1"),
        ({"keep": 0}, "keep: 0 is not a share between 0 and 1"),
        ({"keep": 95}, "keep: 95 is not a share from 0 to below 1"),
        ({"margin": 0}, "margin: 0 is not a number above 0"),
        ({"margin": 0.1, "keep": 0.9}, "keep and margin are both given: leave one out"),
        ({"margin": 3, "metric": "accuracy"}, "margin 3 is all there is of an accuracy: 3 points are 0.03"),
        ({"metric": "f1"}, "metric: 'f1' is not one of nll, accuracy"),
        ({"scalings": "alpha/rank,alpha"}, "scalings: 'alpha' is not one of alpha/rank, rslora"),
        ({"scalings": "rslora,rslora"}, "scalings: scaling rslora given more than once"),
        ({"scalings": "alpha/rank,rslora", "rslora": True}, "rslora and scalings are both given: leave rslora out"),
        ({"rslora": "yes"}, "rslora: 'yes' is not true or false"),
        ({"warmup_ratio": 1}, "warmup-ratio: 1 is not a share from 0 to below 1"),
        ({"schedule": "constant"}, "schedule: 'constant' is not one of linear, cosine"),
        ({"steps": 10, "epochs": 1}, "steps and epochs are both given: leave one out"),
        ({"strategy": "stairs"}, "strategy: 'stairs' is not one of grid, escalate, ladder"),
        (
            {"strategy": "ladder", "ranks": "8"},
            "ranks: strategy ladder cuts the largest rank to smaller ones: give some beside 8",
        ),
        (
            {"strategy": "ladder", "budget": "30m"},
            "budget: only strategy escalate has one; leave it out, or give --strategy escalate",
        ),
        ({"budget": "30m"}, "budget: only strategy escalate has one; leave it out, or give --strategy escalate"),
        ({"budget": "soon", "strategy": "escalate"}, "budget: 'soon' is not a duration such as 90s, 30m or 2h"),
        ({"budget": "0s", "strategy": "escalate"}, "budget: '0s' is not a duration such as 90s, 30m or 2h"),
        ({"budget": "1e308h", "strategy": "escalate"}, "budget: '1e308h' is not a duration such as 90s, 30m or 2h"),
        ({"budget": True, "strategy": "escalate"}, "budget: True is not a duration such as 90s, 30m or 2h"),
        (
            {"ranks": "4,8,16", "strategy": "escalate"},
            "ranks: strategy escalate starts with a rank and its double, such as 8,16, not with 4,8,16",
        ),
        (
            {"ranks": "8", "strategy": "escalate"},
            "ranks: strategy escalate starts with a rank and its double, such as 8,16, not with 8",
        ),
        ({"train": None}, "no training data: give --train FILE, or --task docmatch or docstrings, which are built in"),
        ({"task": "docmatch"}, "train: task docmatch brings its own data; leave it out"),
        ({"task": "docstrings", "train": pd.DataFrame()}, "train: task docstrings brings its own data; leave it out"),
        ({"task": "docmatch", "train": None, "group": "doc"}, "group: task docmatch brings its own data; leave it out"),
        ({"group": ["a", "b"]}, "group: ['a', 'b'] is not a text"),
        ({"retain": "other.txt"}, "retain: only language models can be asked what they forget; leave it out"),
        (
            {"report_to": "nonsense"},
            "report-to: 'nonsense' is not one of none, tensorboard, mlflow, wandb, trackio",
        ),
        ({"report_to": "none,wandb"}, "report-to: none and others are both given: leave one out"),
        ({"report_to": "wandb,wandb"}, "report-to: tracker wandb given more than once"),
        ({"full_learning_rates": "0"}, "full-learning-rates: '0' is not a number above 0"),
        (
            {"full_learning_rates": [1e-4], "quantize": "nf4"},
            "full-learning-rates: weights in nf4 cannot be trained; leave one out",
        ),
    ],
)
def test_one_line_says_what_is_wrong_with(values: dict[str, Any], line: str) -> None:
    assert refusal(**values) == line


def test_trackers_are_a_list_by_the_names_of_their_packages() -> None:
    assert config().report_to == config(report_to="none").report_to == ()
    assert config(report_to="tensorboard, wandb").report_to == ("tensorboard", "wandb")
    assert set(BACK_ENDS) == set(get_args(TrackerName))


def test_ranks_that_are_not_given_are_those_of_the_strategy() -> None:
    assert config().ranks == (4, 8, 16, 32)
    assert config(strategy="escalate").ranks == (8, 16)
    assert config(strategy="ladder").ranks == (1, 2, 4, 8, 16, 32)
    escalated = config(strategy="escalate", budget="1.5h")
    assert ComparisonConfig.from_mapping(yaml.safe_load(yaml.safe_dump(escalated.to_dict())), "a.yaml") == escalated


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2 h", 7200), ("45", 45), (45.5, 45.5)])
def test_a_duration(text: object, seconds: float) -> None:
    assert config(strategy="escalate", budget=text).budget == seconds


def test_an_unknown_option_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"c.yaml: no option 'learning-rate'; did you mean learning-rates\?"):
        ComparisonConfig.from_mapping({"learning_rate": 1e-3}, "c.yaml")


@pytest.mark.parametrize(("rule", "alpha"), [("rank", 8.0), ("2rank", 16.0), (32, 32.0)])
def test_alpha_of_a_trial(rule: Any, alpha: float) -> None:
    assert config(alpha=rule).trial(8, 1e-3, 0).alpha == alpha


def test_every_option_has_a_help_text_and_a_parser() -> None:
    for option in fields(ComparisonConfig):
        assert option.metadata["help"].endswith((".", "]"))
        assert callable(option.metadata["parse"])


def test_a_files_data_is_found_from_where_the_file_lies(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "c.yaml").write_text("train: train.csv\nvalidation: user/data\ntest: data\nranks: [4, 8]\n")
    assert read_config_file(tmp_path / "c.yaml") == {
        "train": str(tmp_path / "train.csv"),
        "validation": "user/data",
        "test": str(tmp_path / "data"),
        "ranks": [4, 8],
    }


def test_a_files_names_may_be_merged(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("<<: {ranks: 4, seeds: 2}\n<<: {keep: 0.9}\nranks: 8\n")
    assert read_config_file(tmp_path / "c.yaml") == {"ranks": 8, "seeds": 2, "keep": 0.9}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("ranks: [4", r"not YAML \(while parsing a flow sequence in line 1, column 8: .*\)$"),
        ("- 4\n- 8\n", "must hold options"),
        ("ranks: 4\nseeds: 2\nranks: 8\n", r"c\.yaml: ranks is given twice; leave one out$"),
        ("max-length: 4\nmax_length: 8\n", r"c\.yaml: max-length is given twice; leave one out$"),
        ("", "must hold options"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_options(content: str | None, line: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=line) as error:
        read_config_file(path)
    assert str(error.value).isprintable()


def test_rslora_is_a_scaling() -> None:
    assert config(rslora=True) == config(scalings=["rslora"])
    assert config(rslora=True).trial(8, 1e-3, 0).use_rslora
    both = config(scalings="alpha/rank,rslora")
    assert [one.trial(8, 1e-3, 0).use_rslora for one in both.each_scaling] == [False, True]


@pytest.mark.parametrize("option", [{"text": "a"}, {"label": "y"}, {"text_pair": "b"}, {"keep_leaked": True}])
def test_a_built_in_task_refuses_what_it_would_ignore(option: dict[str, Any]) -> None:
    (name,) = option
    told = f"{name.replace('_', '-')}: task docmatch brings its own data; leave it out"
    assert refusal(train=None, task="docmatch", **option) == told


def test_a_built_in_task_refuses_a_table() -> None:
    assert refusal(task="docmatch", train=pd.DataFrame({"text": []})).startswith("train: task docmatch brings its own")


def test_full_fine_tuning_can_be_taken_back() -> None:
    assert config(full_learning_rates="none").full_learning_rates is None
