"""What resizing changes on data, against a plain loop over PEFT's own models, an example at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rankwise import RunError, UserError, resize_adapter
from rankwise.base.load import load_base
from rankwise.base.quantize import can_quantize
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.run import run_rank_comparison
from rankwise.decide.interval import over_examples
from rankwise.lora.peft_files import find_adapter
from rankwise.records import Measured, ResizedAdapter
from rankwise.spectrum.measure import score_adapter
from rankwise.spectrum.subject import load_subject
from tests.compare.runs import given_costs, tiny_comparison
from tests.data import sentences
from tests.models import load_peft_model, save_model
from tests.spectrum.adapters import classifier, reconfigure, rewrite, saved_adapter_of, weights_in

TEST = sentences(40, seed=5)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the processor multiplies in bfloat16."""
    monkeypatch.setattr("rankwise.base.load.pick_dtype", lambda choice, device: "float32")


def resized(directory: Path, adapter: Path, test: object = TEST, **options: Any) -> ResizedAdapter:
    options = {"rank": 1, "text": "sentence", "max_length": 48} | options
    return resize_adapter(adapter, directory / "out", test=test, **options)


def plainly_classified(directory: Path, adapter: Path, labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """NLL of each test sentence, and whether its label is the likeliest."""
    base = AutoModelForSequenceClassification.from_pretrained(directory / "base", num_labels=labels)
    model = load_peft_model(base, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory / "base")
    nll, right = [], []
    for text, label in zip(TEST["sentence"], TEST["label"], strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        target = ["no", "yes"].index(label)
        nll.append(float(functional.cross_entropy(logits, torch.tensor(target))))
        right.append(float(logits.argmax() == target))
    return np.array(nll), np.array(right)


def agrees(measured: Measured, before: tuple[np.ndarray, ...], after: tuple[np.ndarray, ...]) -> None:
    """With the plain loop's per-example NLL and accuracy, and with scipy's paired t interval where no tail is long."""
    assert measured.examples == len(before[0])
    assert (measured.nll_before, measured.nll) == (
        pytest.approx(before[0].mean(), abs=1e-4),
        pytest.approx(after[0].mean(), abs=1e-4),
    )
    assert measured.accuracy_before == pytest.approx(before[1].mean(), abs=1e-6)
    assert measured.accuracy == pytest.approx(after[1].mean(), abs=1e-6)
    assert np.ptp(after[0] - before[0]) > 0.02
    for change, old, new in zip((measured.nll_change, measured.accuracy_change), before, after, strict=True):
        if np.ptp(new - old) == 0:
            assert (change.mean, change.low, change.high) == (0, None, None)
            continue
        limits = over_examples(new.astype(np.float64) - old)
        assert (change.low, change.high) == (pytest.approx(limits.low, abs=1e-4), pytest.approx(limits.high, abs=1e-4))
        even = stats.ttest_rel(new, old).confidence_interval(0.95)
        assert change.low is not None
        assert change.high is not None
        beyond = sorted((even.low - change.low, change.high - even.high))
        assert beyond[0] == pytest.approx(0, abs=1e-4)
        assert beyond[1] > -1e-4


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"o_proj": 40}, "lora_dropout": 0.5}),
        ("bert", {"modules_to_save": ["classifier", "pooler"], "target_modules": ["query", "output.dense"]}),
        ("roberta", {"target_modules": ["query"], "lora_alpha": 60}),
        ("gpt2", {"use_rslora": True}),
    ],
)
def test_a_classifier_scores_as_a_plain_loop_says(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    adapter = classifier(tmp_path, architecture, **settings)
    measured = resized(tmp_path, adapter).measured
    assert measured is not None
    agrees(measured, plainly_classified(tmp_path, adapter), plainly_classified(tmp_path, tmp_path / "out"))


def test_a_language_model_scores_as_a_plain_loop_says(tmp_path: Path) -> None:
    save_model(tmp_path / "base", "llama", AutoModelForCausalLM.from_config)
    adapter = tmp_path / "it"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    saved_adapter_of(base, adapter, target_modules="all-linear", r=6, task_type="CAUSAL_LM", lora_alpha=40)
    words = TEST["sentence"].str.split().str[0]
    rows = [{"prompt": f"say {word}: ", "completion": f"{word} {number}"} for number, word in enumerate(words)]
    measured = resize_adapter(adapter, tmp_path / "out", rank=1, test=pd.DataFrame(rows), max_length=48).measured

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")

    def plainly(adapter: Path) -> tuple[np.ndarray, np.ndarray]:
        model = load_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter).eval()
        nll, right = [], []
        for row in rows:
            prompt, completion = (tokenizer(row[part])["input_ids"] for part in ("prompt", "completion"))
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            targets = torch.tensor(completion)
            nll.append(float(functional.cross_entropy(logits, targets)))
            right.append(float((logits.argmax(dim=-1) == targets).float().mean()))
        return np.array(nll), np.array(right)

    assert measured is not None
    assert measured.accuracy_of == "tokens"
    assert measured is not None
    agrees(measured, plainly(adapter), plainly(tmp_path / "out"))


def test_an_adapter_in_a_run_needs_nothing_but_data_and_scores_as_in_the_run(tmp_path: Path) -> None:
    """Trained and scored there by our own packs."""
    config = ComparisonConfig(
        model=str(save_model(tmp_path / "base", "bert")),
        train=sentences(60, seed=1),
        validation=sentences(20, seed=2),
        test=TEST,
        text="sentence",
        ranks=(2, 4),
        learning_rates=(1e-2,),
        seeds=1,
        steps=8,
        batch_size=8,
        max_length=48,
        keep_leaked=True,
    )
    with given_costs():
        run = run_rank_comparison(config, run=tmp_path / "run").run
    (trial,) = run.glob("trials/r4-*-lr0.01-s0")
    scores = pd.read_parquet(trial / "scores.parquet")
    for number, adapter in enumerate((trial, trial / "adapter")):
        measured = resize_adapter(adapter, tmp_path / f"out {number}", rank=1, test=TEST).measured
        assert measured is not None
        assert measured.nll_before == pytest.approx(scores["nll"].mean(), abs=1e-5)
        assert measured.accuracy_before == pytest.approx(scores["correct"].mean(), abs=1e-6)
    # Its labels are the run's, in the run's order, also where the data have but one of them.
    of_one = scores["nll"][(TEST["label"] == "yes").to_numpy()]
    ayes = TEST[TEST["label"] == "yes"]
    shutil.copytree(trial / "adapter", run / "adapter", dirs_exist_ok=True)
    measured = resize_adapter(run, tmp_path / "yes", rank=1, test=ayes).measured
    assert measured is not None
    assert measured.nll_before == pytest.approx(of_one.mean(), abs=1e-5)
    with pytest.raises(UserError, match="labels that what the adapter was trained on has not: 'maybe'"):
        resize_adapter(run, tmp_path / "new", rank=1, test=TEST.replace("yes", "maybe"))
    save_model(tmp_path / "base", "bert", hidden_act="relu")
    with pytest.raises(UserError, match="was trained over another model than"):
        resize_adapter(run, tmp_path / "new", rank=1, test=TEST)
    assert not (tmp_path / "new").exists()


def test_test_examples_that_the_run_was_trained_on_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, fresh = sentences(120, seed=1), sentences(10, seed=7)
    fresh["sentence"] += " fresh"
    train.to_csv(tmp_path / "train.csv", index=False)
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base", "bert")
    data = {"train": "train.csv", "validation": None, "test": None, "keep_leaked": False}
    config = replace(tiny_comparison(tmp_path / "base", learning_rates=(1e-2,), seeds=1, steps=2, **data), model="base")
    with given_costs():
        run = run_rank_comparison(config, run=tmp_path / "run").run
    held_out = pd.read_parquet(next(run.glob("trials/*/scores.parquet")))["example_id"].to_numpy()
    monkeypatch.chdir("/")  # from where neither its data nor its model would be found

    def leaks(test: object) -> list[str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        measured = resize_adapter(next(run.glob("trials/r4*")), tmp_path / "out", rank=1, test=test).measured
        assert measured is not None
        return [note for note in measured.notes if "run" in note]

    # The fifth that the run had cut for test is not what it was trained on.
    said = "also occur in the run's train or validation data; they were kept, and reward memory"
    assert leaks(tmp_path / "train.csv") == [f"{120 - len(held_out)} of 120 test examples {said}"]
    assert leaks(train.iloc[held_out]) == leaks(fresh) == []
    seen = train.drop(index=held_out)[:3]
    assert leaks(pd.concat([fresh, seen])) == [f"3 of 13 test examples {said}"]
    train[::-1].to_csv(tmp_path / "train.csv", index=False)
    unknown = "whether the run was trained on some of these examples is not known: "
    assert leaks(fresh) == [f"{unknown}{tmp_path / 'train.csv'} has changed since"]
    (tmp_path / "train.csv").write_text("other,label\n")
    (why,) = leaks(fresh)
    assert why.startswith(f"{unknown}{tmp_path / 'train.csv'}: no column 'sentence'")
    (tmp_path / "train.csv").unlink()
    assert leaks(fresh) == []


@pytest.mark.skipif(not can_quantize(), reason="bitsandbytes is not here")
def test_a_base_in_four_bits_scores_as_in_the_run(tmp_path: Path) -> None:
    """Of a width that bitsandbytes' kernels for models in eval() do not take."""
    config = tiny_comparison(tmp_path / "base", learning_rates=(1e-2,), seeds=1, steps=4, quantize="nf4")
    save_model(tmp_path / "base", "bert", hidden_size=48, intermediate_size=80)
    with given_costs():
        run = run_rank_comparison(config, run=tmp_path / "run").run
    (trial,) = run.glob("trials/r4-*")
    measured = resize_adapter(trial, tmp_path / "out", rank=1, test=config.test).measured
    assert measured is not None
    assert measured.nll_before == pytest.approx(pd.read_parquet(trial / "scores.parquet")["nll"].mean(), abs=1e-5)


def test_the_base_model_is_left_as_it_was(tmp_path: Path) -> None:
    settings = {"modules_to_save": ["classifier", "pooler"], "target_modules": ["query", "word_embeddings"]}
    files = find_adapter(classifier(tmp_path, "bert", **settings))
    subject = load_subject(files, TEST, {"text": "sentence", "max_length": 48}, print)
    modules, weights = dict(subject.base.model.named_modules()), dict(subject.base.model.state_dict())
    score_adapter(files.directory, subject, print)
    assert list(dict(subject.base.model.named_modules()).items()) == list(modules.items())
    assert all(torch.equal(now, weights[name]) for name, now in subject.base.model.state_dict().items())
    assert not hasattr(subject.base.model, "peft_config")
    assert subject.base.model.training


def without(part: str) -> Callable[[Path], None]:
    return lambda adapter: rewrite(adapter, {n: t for n, t in weights_in(adapter).items() if part not in n})


@pytest.mark.parametrize(
    ("damage", "options", "said"),
    [
        (None, {"test": TEST.assign(label="yes")}, "every label in column 'label' is 'yes'"),
        (None, {"test": TEST.assign(label=["a", "b", "c", "d"] * 10)}, "2 classes apart (score.weight), and the data"),
        (None, {"test": TEST.assign(label=["a", "b", "c", "d"] * 10)}, "have 4 labels: 'a', 'b', 'c', 'd'"),
        (None, {"text": "text"}, "no column 'text'"),
        (None, {"test": "nowhere.csv"}, "nowhere.csv: no such file"),
        (None, {"max_length": 100}, "max-length: 100 is more than the 64 positions"),
        (None, {"model": "/nowhere"}, "/nowhere is not a model directory"),
        (without("score"), {}, "neither has weights of score.weight"),
        (lambda it: reconfigure(it, task_type="TOKEN_CLS"), {}, "its task type is 'TOKEN_CLS'"),
        (lambda it: reconfigure(it, task_type="CAUSAL_LM"), {}, "text: task instruction finds its columns by"),
        (lambda it: reconfigure(it, base_model_name_or_path=None), {}, "which model it adapts: give it with --model"),
        (lambda it: save_model(it.parent / "base", "llama", hidden_size=16), {}, "does not fit"),
        (lambda it: save_model(it.parent / "base", "llama", intermediate_size=16), {}, "does not fit"),
        (lambda it: save_model(it.parent / "base", "mistral", num_hidden_layers=1), {}, "which has no model.layers.1."),
    ],
)
def test_nothing_is_written_where_adapter_model_and_data_do_not_belong_together(
    damage: Callable[[Path], object] | None, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    adapter = classifier(tmp_path)
    if damage is not None:
        damage(adapter)
    with pytest.raises(UserError) as error:
        resized(tmp_path, adapter, **options)
    assert said in str(error.value)
    assert str(error.value).isprintable()
    assert not (tmp_path / "out").exists()


def test_options_of_measuring_need_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max-length says how test data are scored"):
        resize_adapter(classifier(tmp_path), tmp_path / "out", rank=1, max_length=48)


def test_figures_are_shown_and_are_json(tmp_path: Path) -> None:
    made = resized(tmp_path, classifier(tmp_path), rank=6)
    document = json.loads(json.dumps(made.to_dict(), allow_nan=False))["measured"]
    assert made.measured is not None
    assert document["nll_before"] == made.measured.nll_before
    assert document["accuracy_change"] == {"mean": 0, "low": None, "high": None}
    shown = made._repr_markdown_()
    assert "40 test examples" in shown
    assert "evaluate the adapter" not in shown


def test_limits_of_an_adapter_in_a_run_count_its_groups(tmp_path: Path) -> None:
    adapter = classifier(tmp_path).rename(tmp_path / "adapter")
    config = ComparisonConfig(train="t.csv", model=str(tmp_path / "base"), text="sentence", max_length=48, group="doc")
    described = {
        "config": config.to_dict(),
        "data": {"labels": ["no", "yes"]},
        "model": {"revision": load_base(tmp_path / "base", num_labels=2).revision},
    }
    (tmp_path / "comparison.json").write_text(json.dumps(described))
    docs = np.arange(40) // 4

    def measured(out: str, test: object) -> Measured:
        found = resize_adapter(adapter, tmp_path / out, rank=1, test=test).measured
        assert found is not None
        return found

    alone, grouped = (measured(f"out{size}", TEST.assign(doc=np.arange(40) // size)) for size in (1, 4))
    subject = load_subject(find_adapter(adapter), TEST.assign(doc=docs), {}, lambda text: None)
    before, after = (score_adapter(where, subject, lambda text: None) for where in (adapter, tmp_path / "out4"))
    expected = over_examples(after.nll[0].astype(np.float64) - before.nll[0], groups=docs)
    assert expected.low is not None
    assert grouped.nll_change.low == pytest.approx(expected.low, abs=1e-5)
    assert grouped.nll_change.high == pytest.approx(expected.high, abs=1e-5)
    assert grouped.nll_change.mean == pytest.approx(alone.nll_change.mean, abs=1e-5)
    assert grouped.nll_change.low != pytest.approx(alone.nll_change.low, abs=1e-3)
    with pytest.raises(UserError, match="no column 'doc'"):
        resize_adapter(adapter, tmp_path / "out", rank=1, test=TEST)


def test_a_run_on_its_own_pairs_asks_for_the_column_of_the_second_text(tmp_path: Path) -> None:
    adapter = classifier(tmp_path).rename(tmp_path / "adapter")
    config = ComparisonConfig(task="docmatch", model=str(tmp_path / "base"), max_length=64)
    revision = load_base(tmp_path / "base", num_labels=2).revision
    described = {"config": config.to_dict(), "data": {"labels": ["no", "yes"]}, "model": {"revision": revision}}
    (tmp_path / "comparison.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="trained on pairs of texts: name the column of the second with --text-pair"):
        resize_adapter(adapter, tmp_path / "out", rank=1, test=TEST, text="sentence")
    pairs = TEST.assign(other="one")
    measured = resize_adapter(
        adapter, tmp_path / "out", rank=1, test=pairs, text="sentence", text_pair="other"
    ).measured
    assert measured is not None
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(RunError, match="is damaged"):
        resize_adapter(adapter, tmp_path / "new", rank=1, test=TEST)
