"""Multiple choices: what is learned of them, and that the likeliest choice is counted as the model's answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rankwise.base.load import load_base
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.run import run_rank_comparison
from rankwise.errors import UserError
from rankwise.tasks.instruction import load_instruction
from rankwise.tasks.task import Split, Task
from rankwise.train.loop import score
from tests.compare.runs import given_costs
from tests.models import save_model

ROWS: list[dict[str, Any]] = [
    {"prompt": f"{number} hills and ", "choices": ["road", "sea", "tree"][: 2 + number % 2], "answer": number % 2}
    for number in range(24)
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def task(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Task:
    file = written(tmp_path / "choices.jsonl", ROWS)
    return load_instruction(train=file, validation=None, test=None, tokenizer=tokenizer, max_length=64)


def choices(split: Split, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    assert split.learned is not None
    texts = (tokenizer.decode(split.input_ids[row][split.learned[row] == 1]) for row in range(len(split)))
    return [text.replace(tokenizer.eos_token or "\0", "") for text in texts]


def test_the_right_choice_is_learned_and_the_wrong_ones_are_its_rivals(
    task: Task, tokenizer: PreTrainedTokenizerFast
) -> None:
    for split in (task.train, task.validation, task.test):
        expected = [ROWS[row]["choices"][ROWS[row]["answer"]] for row in split.example_ids]
        assert choices(split, tokenizer) == expected
    assert task.train.rivals is None
    for split in (task.validation, task.test):
        rivals = split.rivals
        assert rivals is not None
        found = {(int(row), text) for row, text in zip(rivals.example_ids, choices(rivals, tokenizer), strict=True)}
        assert found == {
            (int(row), choice)
            for row in split.example_ids
            for number, choice in enumerate(ROWS[row]["choices"])
            if number != ROWS[row]["answer"]
        }


def test_other_rivals_are_other_data(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The right choices are the same, but whether a model chooses them is another question."""

    def test_split(last: str, cap: int) -> Split:
        rows = [{"prompt": f"{number} and ", "choices": ["sea", last], "answer": 0} for number in range(30)]
        file = written(tmp_path / "choices.jsonl", rows)
        return load_instruction(
            train=file, validation=None, test=None, tokenizer=tokenizer, max_length=64, caps={"test": cap}
        ).test

    five = test_split("road", cap=5)
    assert five.fingerprint() != test_split("tree", cap=5).fingerprint()
    assert test_split("road", cap=3).fingerprint() == five.fingerprint(first=3) != five.fingerprint()


def test_a_model_is_right_where_no_rival_has_a_lower_mean_nll(task: Task, tmp_path: Path) -> None:
    directory = save_model(tmp_path / "llama", "llama", AutoModelForCausalLM.from_config, vocab_size=task.outcomes)
    base = load_base(directory, num_labels=None, dtype="float32", device="cpu")
    scores = score(base, 1, task, task.test)

    def mean_nll(split: Split, row: int) -> float:
        ids, learned = torch.tensor(split.input_ids[row][None]).long(), split.learned
        assert learned is not None
        with torch.no_grad():
            logits = base.model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
        nll = -logits.gather(1, ids[0, 1:, None])[:, 0]
        return float(nll[torch.from_numpy(learned[row][1:]) == 1].mean())

    rivals = task.test.rivals
    assert rivals is not None
    expected = [
        all(
            mean_nll(task.test, row) < mean_nll(rivals, rival)
            for rival in np.flatnonzero(rivals.example_ids == task.test.example_ids[row])
        )
        for row in range(len(task.test))
    ]
    assert scores.correct[0].astype(bool).tolist() == expected


def test_a_comparison_learns_to_choose(tmp_path: Path) -> None:
    model = save_model(tmp_path / "llama", "llama", AutoModelForCausalLM.from_config)
    rows = [
        {"question": f"{number} {word} ", "choices": ["road", "sea"], "answer": ["road", "sea"][word == "two"]}
        for number in range(100)
        for word in (["one", "two"][number % 2],)
    ]
    config = ComparisonConfig(
        model=str(model),
        task="instruction",
        train=written(tmp_path / "train.jsonl", rows),
        ranks=(1, 4),
        learning_rates=(2e-2,),
        seeds=2,
        steps=60,
        max_length=32,
        dtype="float32",
        device="cpu",
    )
    with given_costs():
        comparison = run_rank_comparison(config, run=tmp_path / "run")
    assert comparison.accuracy_of == "choices"
    assert comparison.experiments[-1].accuracy > 0.9


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"answer": 2}, "answer is neither one of the choices nor the number of one, counted from 0"),
        ({"answer": "hill"}, "answer is neither one of the choices nor the number of one, counted from 0"),
        ({"choices": ["1", "0"], "answer": 0}, "answer 0 is one of the choices, and the number of another"),
        ({"choices": ["road"], "answer": 0}, "choices is not a list of two texts or more"),
        ({"choices": "road or sea"}, "choices is not a list of texts"),
        ({"choices": ["road", "road"]}, "two choices are the same"),
        ({"choices": ["road", ""]}, "choice 1 is empty"),
    ],
)
def test_a_bad_choice_is_named_with_its_line(
    changed: dict[str, Any], line: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    file = written(tmp_path / "choices.jsonl", [*ROWS[:3], ROWS[4] | changed])
    with pytest.raises(UserError) as error:
        load_instruction(train=file, validation=None, test=None, tokenizer=tokenizer, max_length=64)
    assert f"choices.jsonl, line 4: {line}" in str(error.value)
