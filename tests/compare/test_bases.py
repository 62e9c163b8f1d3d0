"""One comparison over several bases: the first answers, the others say whether the conclusion flips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from rankwise.cli.options import configured
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.page import write_page
from rankwise.compare.run import run_rank_comparison
from rankwise.errors import UserError
from tests.compare.runs import KilledError, numbers
from tests.compare.test_instruction_run import conversations, instruction_config
from tests.compare.test_instruction_run import model as model  # a fixture
from tests.models import save_model

pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.usefixtures("given_costs")


def over_two_bases(model: Path, place: Path, *, steps: int) -> ComparisonConfig:
    train = conversations(place / "train.jsonl", 60)
    options = {"ranks": (1, 2), "evaluations": 1, "dtype": "auto", "bases": "float32,int8"}
    return instruction_config(model, train, steps=steps, **options)


def test_each_base_is_compared_and_the_conclusions_are_set_side_by_side(model: Path, tmp_path: Path) -> None:
    config = over_two_bases(model, tmp_path, steps=10)
    both = run_rank_comparison(config, run=tmp_path / "both")
    (over,) = both.over
    assert (both.base, over.base) == ("float32", "int8")
    assert over.run == tmp_path / "both" / "bases" / "int8"
    assert sum(note.startswith("over int8: the conclusion ") for note in both.notes) == 1
    assert "--bases float32,int8" in (both.run / "report.html").read_text()
    assert "--quantize int8" in (over.run / "report.html").read_text()
    again = configured(None, {}, begun=both.run)
    assert again.to_dict() == config.to_dict()
    assert configured(None, {"quantize": "int8"}, begun=both.run).bases is None
    document = json.loads((both.run / "experiments.json").read_text())
    assert [one["base"] for one in document["over"]] == ["int8"]
    alone = run_rank_comparison(replace(config, bases=None, quantize="int8"), run=tmp_path / "alone")
    assert numbers(alone.run) == numbers(over.run)
    assert [row.nll for row in over.experiments] != [row.nll for row in both.experiments]
    resumed = run_rank_comparison(again, run=tmp_path / "both", resume=True)
    assert [row.nll for row in resumed.over[0].experiments] == [row.nll for row in over.experiments]


def stored_in_nf4(model: Path, directory: Path) -> Path:
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(model, quantization_config=how).save_pretrained(directory)
    return directory


def test_weights_that_are_stored_in_few_bits_are_no_other_base_nor_trained(model: Path, tmp_path: Path) -> None:
    wide = save_model(tmp_path / "wide", "llama", AutoModelForCausalLM.from_config, hidden_size=64, head_dim=16)
    stored = stored_in_nf4(wide, tmp_path / "nf4")
    AutoTokenizer.from_pretrained(model).save_pretrained(stored)
    train = conversations(tmp_path / "train.jsonl", 60)
    config = instruction_config(stored, train, steps=2, seeds=1, dtype="auto", bases="float32,nf4")
    with pytest.raises(UserError, match=r"bases: the weights of .* are stored in nf4 already; leave float32 out"):
        run_rank_comparison(config, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    full = replace(config, bases=None, full_learning_rates=(1e-4,))
    with pytest.raises(UserError, match="full-learning-rates: weights in nf4 cannot be trained"):
        run_rank_comparison(full, run=tmp_path / "run")


def test_a_run_has_not_ended_before_all_its_bases_have(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = over_two_bases(model, tmp_path, steps=2)

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("rankwise.compare.run._over_the_others", killed)
        with pytest.raises(KilledError):
            run_rank_comparison(config, run=tmp_path / "run")
    with pytest.raises(UserError, match="has not ended: go on with it by rankwise compare --run"):
        write_page(tmp_path / "run")
    assert run_rank_comparison(config, run=tmp_path / "run", resume=True).over
    assert write_page(tmp_path / "run").is_file()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"bases": "nf5"}, "bases: 'nf5' is not one of float32, bfloat16, nf4, nf4-double, int8"),
        ({"bases": "nf4,nf4"}, "bases: base nf4 given more than once"),
        ({"bases": "nf4", "quantize": "int8"}, "quantize and bases are both given: leave one out"),
        (
            {"bases": "float32,nf4", "full_learning_rates": "1e-4"},
            "full-learning-rates: weights in nf4 cannot be trained; leave one out",
        ),
    ],
)
def test_bases_that_cannot_be_are_one_line(options: dict[str, str], line: str) -> None:
    with pytest.raises(UserError) as error:
        ComparisonConfig.from_mapping({"train": "train.csv"} | options, "the command line")
    assert str(error.value) == line
