from __future__ import annotations

import json
import math
import os
import re
import shutil
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from filelock import FileLock
from scipy.special import log_softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rankwise import ComparisonConfig, RankComparison, RunError, UserError, plan_rank_comparison, run_rank_comparison
from rankwise.base.model import BaseModel
from rankwise.compare import backends
from rankwise.compare.directory import read_comparison
from rankwise.compare.journal import Event, Journal
from rankwise.compare.observer import Planned
from rankwise.compare.page import write_page
from rankwise.compare.prepare import disk_bytes, prepare
from rankwise.compare.run import over_another
from rankwise.compare.schedule import most_rates
from rankwise.decide.interval import crossed_interval
from rankwise.decide.verdict import decide
from rankwise.lora.attach import attached
from rankwise.records import Baseline, Trial, Verdict
from rankwise.tasks.task import Task
from rankwise.train.cost import StepCost
from tests.compare.runs import KilledError, journal, numbers, tiny_comparison
from tests.data import sentences
from tests.models import save_model

pytestmark = pytest.mark.usefixtures("given_costs")


@pytest.fixture(scope="module", autouse=True)
def weak_rank_0() -> Iterator[None]:
    """Few steps of a tiny model do not beat a head that is fitted to the end, and then no learning rate is dropped."""
    with pytest.MonkeyPatch.context() as patched:
        rank_0 = Baseline(accuracy=0.5, nll=math.inf)
        patched.setattr("rankwise.compare.training.validation_baseline", lambda journal: rank_0)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "bert"


@pytest.fixture(scope="module")
def config(model: Path) -> ComparisonConfig:
    return tiny_comparison(model, steps=30, evaluations=3)


KILLS = 3  # of a run, evenly spread over its writes
RUNGS = (20, 30)  # of three evaluations, those of the second half


def rates_of(run: Path, rank: int) -> list[float]:
    """The learning rates that a rank was trained with."""
    trials = [trial for plan in journal(run, "plan") for pack in plan["packs"] for trial in pack["trials"]]
    return sorted({trial["learning_rate"] for trial in trials if trial["rank"] == rank})


@pytest.fixture(scope="module")
def finished(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> RankComparison:
    return run_rank_comparison(config, run=tmp_path_factory.mktemp("runs") / "run")


def test_what_a_run_ended_with_is_read_back_wherever_it_lies(finished: RankComparison, tmp_path: Path) -> None:
    assert read_comparison(finished.run).to_dict() == finished.to_dict()
    shutil.copytree(finished.run, tmp_path / "moved")
    moved = read_comparison(tmp_path / "moved")
    assert moved.adapter == tmp_path / "moved/adapter"
    (tmp_path / "moved/experiments.json").write_text('{"run": 1}')
    with pytest.raises(RunError, match=r"experiments.json is damaged \(.*\); restore it"):
        read_comparison(tmp_path / "moved")
    (tmp_path / "moved/experiments.json").unlink()
    with pytest.raises(UserError, match="has not ended: go on with it"):
        read_comparison(tmp_path / "moved")
    with pytest.raises(UserError, match="is not a run directory"):
        read_comparison(tmp_path)


def test_every_run_has_a_page_with_the_trials_that_were_begun(finished: RankComparison) -> None:
    page = (finished.run / "report.html").read_text()
    for rank in (2, 4):
        for rate in rates_of(finished.run, rank):
            assert f"r={rank}, learning rate {rate:g}: validation NLL" in page
        assert f"r={rank}, step 30: validation NLL" in page
    assert "--ranks 2,4" in page
    assert "r=4, the rank's own: " in page
    assert write_page(finished.run).read_text() == page


def test_a_row_for_each_rank_with_what_was_asked_for(finished: RankComparison, config: ComparisonConfig) -> None:
    assert [experiment.rank for experiment in finished.experiments] == [2, 4]
    for experiment in finished.experiments:
        assert experiment.learning_rate in rates_of(finished.run, experiment.rank)
        assert (experiment.alpha, experiment.use_rslora, experiment.seeds) == (experiment.rank, False, 2)
        assert experiment.accuracy_low is not None
        assert experiment.accuracy_high is not None
        assert 0 <= experiment.accuracy_low <= experiment.accuracy <= experiment.accuracy_high <= 1
        assert experiment.training_time_seconds > 0
    frame = finished.to_pandas()
    assert frame["rank"].tolist() == [2, 4]
    assert frame["accuracy"].tolist() == [experiment.accuracy for experiment in finished.experiments]


def test_the_document_on_disk_is_the_one_that_is_returned(finished: RankComparison) -> None:
    assert json.loads((finished.run / "experiments.json").read_text()) == finished.to_dict()


def test_figures_come_from_the_scores_on_disk(finished: RankComparison) -> None:
    for experiment in finished.experiments:
        rate = f"{experiment.learning_rate:g}"
        name = f"r{experiment.rank}-a{experiment.rank}-lr{rate}"
        scores = [pd.read_parquet(finished.run / "trials" / f"{name}-s{seed}" / "scores.parquet") for seed in (0, 1)]
        correct = np.stack([one["correct"] for one in scores]).astype(float)
        interval = crossed_interval(correct)
        assert experiment.accuracy == pytest.approx(correct.mean())
        assert experiment.accuracy_low == pytest.approx(max(0.0, interval.low or 0.0))
        assert experiment.nll == pytest.approx(np.mean([one["nll"].mean() for one in scores]))
        assert scores[0]["example_id"].tolist() == list(range(60))


def test_each_rank_has_the_best_of_its_rates_that_were_trained_to_the_end(
    finished: RankComparison, config: ComparisonConfig
) -> None:
    taken = set()
    for experiment in finished.experiments:
        losses = {}
        for rate in rates_of(finished.run, experiment.rank):
            trials = [finished.run / "trials" / config.trial(experiment.rank, rate, seed).id for seed in (0, 1)]
            curves = [pd.read_parquet(trial / "curve.parquet") for trial in trials]
            (steps,) = {len(curve) for curve in curves}
            taken.add(steps)
            assert all((trial / "adapter").is_dir() == (steps == 30) for trial in trials)
            assert all(
                curve["step"][curve["validation_nll"].notna()].tolist() == [10, 20, 30][: steps // 10]
                for curve in curves
            )
            if steps == 30:
                losses[rate] = np.mean([curve["validation_nll"].iloc[-1] for curve in curves])
        assert experiment.learning_rate == min(losses, key=lambda rate: losses[rate])
    assert taken == set(RUNGS)


def test_a_rank_gets_rates_beyond_the_edge_that_its_best_one_is_at(finished: RankComparison) -> None:
    """One epoch and a half of a tiny model wants a higher rate than was given."""
    tried = [rates_of(finished.run, rank) for rank in (2, 4)]
    assert max(map(len, tried)) > 2
    for rates in tried:
        assert rates in ([1e-3, 5e-3, 0.025][: len(rates)], [1e-3, 5e-3, 0.025, 0.125])
    plans = journal(finished.run, "plan")
    assert [(plan["start"], plan["stop"]) for plan in plans if plan["start"] == 0] == [(0, RUNGS[0])] * (
        max(map(len, tried)) - 1
    )
    best = [experiment.learning_rate for experiment in finished.experiments]
    at_an_edge = [rate in (min(rates), max(rates)) for rate, rates in zip(best, tried, strict=True)]
    assert any(at_an_edge) == any("one beyond it may be better" in note for note in finished.notes)
    assert list((finished.run / "checkpoints").iterdir()) == []


def test_only_chosen_trials_touch_the_test_split(finished: RankComparison) -> None:
    chosen = {(experiment.rank, f"{experiment.learning_rate:g}") for experiment in finished.experiments}
    scored = {
        tuple(file.parent.name.split("-")[part] for part in (0, 2))
        for file in finished.run.glob("trials/*/scores.parquet")
    }
    assert scored == {(f"r{rank}", f"lr{rate}") for rank, rate in chosen}


def test_the_adapter_is_a_trial_that_peft_loads_and_scores_alike(finished: RankComparison, model: Path) -> None:
    """From the raw texts, through PEFT and transformers alone, to the NLL that was reported."""
    settings = json.loads((finished.adapter / "adapter_config.json").read_text())
    scores = {
        file.parent.name: pd.read_parquet(file)
        for file in finished.run.glob(f"trials/r{settings['r']}-*/scores.parquet")
    }
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    adapted = peft.PeftModel.from_pretrained(base, str(finished.adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    test = sentences(60, seed=3)
    encoded = tokenizer(test["sentence"].tolist(), padding=True, truncation=True, max_length=48, return_tensors="pt")
    with torch.no_grad():
        logits = adapted(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    nll = -log_softmax(logits.numpy(), axis=1)[np.arange(60), (test["label"] == "yes").astype(int)]
    assert any(one["nll"].to_numpy() == pytest.approx(nll, abs=1e-4) for one in scores.values())


def test_rank_0_is_scored_on_the_same_examples(finished: RankComparison) -> None:
    scores = pd.read_parquet(finished.run / "baseline" / "scores.parquet")
    assert scores["example_id"].tolist() == list(range(60))
    assert finished.baseline.accuracy == pytest.approx(scores["correct"].mean())
    assert finished.baseline.nll == pytest.approx(scores["nll"].mean())
    assert finished.baseline.nll < 0.7  # the word that decides is in the text, so even a random model's features tell


def test_a_finished_run_is_read_again_without_training(finished: RankComparison, config: ComparisonConfig) -> None:
    before = (finished.run / "journal.jsonl").read_bytes()
    again = run_rank_comparison(config, run=finished.run, resume=True)
    assert again == finished
    assert (finished.run / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "smaller",
    [
        {"ranks": (2,), "seeds": 1, "learning_rates": (1e-3,), "max_test_examples": 20},
        {"seeds": 1},
        {"learning_rates": (5e-3,)},
        {"ranks": (4,)},
    ],
    ids=["everything", "seeds", "learning rates", "ranks"],
)
def test_a_run_that_was_smaller_ends_as_one_that_was_large_from_the_start(
    smaller: dict[str, Any], finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    run_rank_comparison(replace(config, **smaller), run=tmp_path / "run")
    ended = {file: file.stat().st_mtime_ns for file in tmp_path.glob("run/trials/*/adapter/adapter_model.safetensors")}
    large = replace(config, max_test_examples=1000 if "max_test_examples" in smaller else None)  # all there are: 60
    extended = run_rank_comparison(large, run=tmp_path / "run", resume=True)
    assert {file: file.stat().st_mtime_ns for file in ended} == ended
    for one, other in zip(extended.experiments, finished.experiments, strict=True):
        assert (one.rank, one.learning_rate, one.seeds) == (other.rank, other.learning_rate, other.seeds)
        # Packed otherwise, so equal but for rounding.
        assert one.nll == pytest.approx(other.nll, rel=1e-3)
    looks = [note for note in extended.notes if note not in finished.notes]
    assert [note[:35] for note in looks] == ["the comparison was decided 2 times,"]
    for experiment in extended.experiments:
        trial = config.trial(experiment.rank, experiment.learning_rate, 1)
        assert len(pd.read_parquet(tmp_path / "run" / "trials" / trial.id / "scores.parquet")) == 60


@pytest.mark.parametrize("rule", [{"keep": 0.5}, {"margin": 0.3}, {"metric": "accuracy"}])
def test_another_rule_is_another_look(
    rule: dict[str, Any], finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    """Whoever tries margins until one resolves is told."""
    shutil.copytree(finished.run, tmp_path / "run")
    decided = run_rank_comparison(replace(config, **rule), run=tmp_path / "run", resume=True)
    assert [note for note in decided.notes if "was decided 2 times" in note]
    assert len(journal(tmp_path / "run", "decided")) == 2


def test_killed_at_any_write_a_run_ends_with_the_same_numbers(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and every line of the journal is flushed, so the flushes are the instants at which a kill can tell."""
    small = replace(config, steps=8, learning_rates=(1e-3, 5e-3, 0.025), evaluations=2, pack_size=3)
    flush, flushes, kill_at = os.fsync, 0, math.inf

    def counted(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        if flushes >= kill_at:
            raise KilledError
        flush(descriptor)

    monkeypatch.setattr("os.fsync", counted)
    run_rank_comparison(small, run=tmp_path / "undisturbed")
    undisturbed, in_all = numbers(tmp_path / "undisturbed"), flushes
    assert len(undisturbed["plans"]) > 2
    for part in range(1, KILLS + 1):
        run = tmp_path / f"killed{part}"
        flushes, kill_at = 0, part * in_all // (KILLS + 1)
        with pytest.raises(KilledError):
            run_rank_comparison(small, run=run)
        flushes, kill_at = 0, in_all // (KILLS + 1)
        resume = (run / "comparison.json").exists()
        with pytest.raises(KilledError):
            run_rank_comparison(small, run=run, resume=resume)
        kill_at = math.inf
        run_rank_comparison(small, run=run, resume=True)
        assert numbers(run) == undisturbed, f"killed at flush {part * in_all // (KILLS + 1)}"
        assert list((run / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch_size": 16}, "batch-size is 8 there and 16 here"),
        ({"ranks": (4,)}, "ranks is 2,4 there, and 4 does not contain that"),
        ({"seeds": 1}, "seeds is 2 there, and 1 does not contain that"),
        ({"train": sentences(160, seed=9)}, "the train data differ"),
        ({"test": sentences(60, seed=9)}, "the test data differ"),
        ({"test": sentences(59, seed=3)}, "the test data differ"),
        ({"dtype": "bfloat16"}, "dtype is float32 there and bfloat16 here"),
    ],
)
def test_another_comparison_cannot_go_on_in_a_run(
    changed: dict[str, Any], said: str, finished: RankComparison, config: ComparisonConfig
) -> None:
    before = {file: file.read_bytes() for file in finished.run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="belongs to another comparison") as error:
        run_rank_comparison(replace(config, **changed), run=finished.run, resume=True)
    assert said in str(error.value)
    assert {file: file.read_bytes() for file in finished.run.rglob("*") if file.is_file()} == before


def test_an_extension_of_which_nothing_was_trained_can_be_taken_back(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    larger = replace(config, ranks=(2, 4, 8), seeds=3, learning_rates=(1e-3, 2e-3, 5e-3), scalings="alpha/rank,rslora")

    def fail(*arguments: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("rankwise.compare.training._trained", fail)  # what it trains is journaled by then
        with pytest.raises(KilledError):
            run_rank_comparison(larger, run=run, resume=True)
    assert json.loads((run / "comparison.json").read_text())["config"]["ranks"] == [2, 4, 8]
    with pytest.raises(UserError, match="ranks is 2,4 there, and 2,8 does not contain that"):
        run_rank_comparison(replace(config, ranks=(2, 8)), run=run, resume=True)
    again = run_rank_comparison(config, run=run, resume=True)
    assert again.experiments == finished.experiments
    assert json.loads((run / "comparison.json").read_text())["config"]["ranks"] == [2, 4]
    assert journal(run, "trained") == journal(finished.run, "trained")
    # It can be asked for again.
    assert [row.rank for row in run_rank_comparison(larger, run=run, resume=True).experiments] == [2, 4, 8] * 2


@pytest.mark.parametrize("name", ["removed", os.fsdecode(b"\xff")])
def test_it_does_not_matter_where_a_run_is_begun(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    if name == "removed":
        (tmp_path / name).rmdir()
    small = replace(config, ranks=(2,), learning_rates=(1e-3,), seeds=1, steps=2)
    run_rank_comparison(small, run=tmp_path / "run")
    assert run_rank_comparison(small, run=tmp_path / "run", resume=True).experiments


def test_a_run_that_lost_its_journal_is_left_as_it_is(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    (run / "journal.jsonl").unlink()
    with pytest.raises(RunError, match="is missing or cut short"):
        run_rank_comparison(replace(config, ranks=(8, 16)), run=run, resume=True)
    assert (run / "comparison.json").read_bytes() == (finished.run / "comparison.json").read_bytes()


def test_a_run_from_before_an_option_existed_goes_on(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    file = tmp_path / "run" / "comparison.json"
    description = json.loads(file.read_text())
    del description["config"]["skip_bad"], description["config"]["score"]
    file.write_text(json.dumps(description))
    again = run_rank_comparison(config, run=tmp_path / "run", resume=True)
    assert again.experiments == finished.experiments


def test_a_run_is_never_written_over(finished: RankComparison, config: ComparisonConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="continue it with --resume"):
        run_rank_comparison(config, run=finished.run)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(UserError, match="is not a run directory; choose another --run"):
        run_rank_comparison(config, run=tmp_path / "thesis")
    with pytest.raises(UserError, match="nothing to resume"):
        run_rank_comparison(config, run=tmp_path / "absent", resume=True)


@pytest.mark.parametrize("file", ["comparison.json", "journal.jsonl", "trials/r2-a2-lr0.001-s0/curve.parquet"])
def test_a_damaged_file_is_named(file: str, config: ComparisonConfig, tmp_path: Path) -> None:
    small = replace(config, ranks=(2,), seeds=1, learning_rates=(1e-3,), steps=3)
    run_rank_comparison(small, run=tmp_path / "run")
    damaged = tmp_path / "run" / file
    damaged.write_bytes(b"\x00\n" + damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(RunError, match=file) as error:
        run_rank_comparison(small, run=tmp_path / "run", resume=True)
    assert str(error.value).isprintable()


def test_a_journal_that_is_older_than_the_trials_is_told(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    """As in a copy of a run that trained on meanwhile: its trials stood at the first rung for ever, and had no row."""
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    (run / "experiments.json").unlink()
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    second_leg = next(number for number, line in enumerate(lines) if json.loads(line).get("start", 0) > 0)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:second_leg]))
    with pytest.raises(RunError, match=r"journal\.jsonl is missing or cut short: the run has gone further") as error:
        run_rank_comparison(config, run=run, resume=True)
    assert str(error.value).isprintable()


def test_a_kill_before_a_pack_is_journaled_is_no_loss(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curves of the second leg are there by then."""
    append = Journal.append

    def kill(self: Journal, event: str, **values: Any) -> Event:
        if event == "trained" and self.of("plan")[-1]["start"] > 0:
            raise KilledError
        return append(self, event, **values)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", kill)
        with pytest.raises(KilledError):
            run_rank_comparison(config, run=tmp_path / "run")
    run_rank_comparison(config, run=tmp_path / "run", resume=True)
    assert numbers(tmp_path / "run") == numbers(finished.run)


def test_a_damaged_state_of_a_trial_at_a_rung_is_named_and_can_be_removed(
    config: ComparisonConfig, tmp_path: Path
) -> None:
    small = replace(config, steps=4, evaluations=2)

    def kill(event: object) -> None:
        if isinstance(event, Planned) and event.leg.start > 0:
            raise KilledError

    with pytest.raises(KilledError):
        run_rank_comparison(small, run=tmp_path / "run", observe=kill)
    state, *_ = sorted((tmp_path / "run" / "checkpoints").iterdir())
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(RunError, match=rf"{re.escape(state.name)} is damaged .*; remove it") as error:
        run_rank_comparison(small, run=tmp_path / "run", resume=True)
    assert str(error.value).isprintable()
    state.unlink()
    assert len(run_rank_comparison(small, run=tmp_path / "run", resume=True).experiments) == 2
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_rank_whose_every_rate_diverges_is_told_and_left_out(config: ComparisonConfig, tmp_path: Path) -> None:
    comparison = run_rank_comparison(replace(config, learning_rates=(1e-3, 1e6), steps=8), run=tmp_path / "one")
    assert {experiment.learning_rate for experiment in comparison.experiments} == {1e-3}
    assert any(re.match(r"4 of \d+ trials diverged: r2-a2-lr1000000-s0", note) for note in comparison.notes)
    with pytest.raises(RunError, match="at every learning rate of every rank a seed diverged"):
        run_rank_comparison(replace(config, learning_rates=(1e6,), steps=8), run=tmp_path / "all")


def test_too_little_disk_is_told_before_anything_is_written(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.compare.directory.shutil.disk_usage", lambda path: type("", (), {"free": 1_000}))
    with pytest.raises(UserError, match=r"not enough disk: the run needs 0\.\d GB"):
        run_rank_comparison(config, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_mixes_its_batch_is_trained_a_trial_at_a_time(config: ComparisonConfig, tmp_path: Path) -> None:
    """XLNet puts the positions first."""
    xlnet = save_model(tmp_path / "xlnet", "xlnet")
    comparison = run_rank_comparison(replace(config, model=str(xlnet), steps=4, pack_size=4), run=tmp_path / "run")
    plans = journal(tmp_path / "run", "plan")
    assert [len(pack["trials"]) for pack in plans[0]["packs"]] == [1] * 8
    assert {len(pack["trials"]) for plan in plans for pack in plan["packs"]} == {1}
    assert any("one by one" in note for note in comparison.notes)


def test_a_plan_counts_and_leaves_nothing(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A step of rank 4 takes three times as long as one of rank 2, and a trial in a pack half of what it takes alone.
    seconds = {2: 1.0, 4: 3.0}

    def alone(base: object, task: object, trials: Sequence[Trial], *others: object) -> list[StepCost]:
        return [StepCost(trial.rank, seconds[trial.rank], None) for trial in trials]

    def together(base: object, task: object, trials: Sequence[Trial], *others: object) -> float:
        return sum(seconds[trial.rank] for trial in trials) / 2

    monkeypatch.setattr("rankwise.compare.preview.measure_costs", alone)
    monkeypatch.setattr("rankwise.compare.preview.measure_pack", together)
    plan = plan_rank_comparison(replace(config, pack_size=3))
    assert (plan.trials, plan.packs, plan.steps) == (8, 3, 30)
    # Beside the two rates a third, to step 20, and two of them to step 30; with two more and none dropped, four to
    # step 30; of 2 ranks, 2 seeds.
    assert plan.training_seconds == 80 * 2 * (1 + 3) / 2
    assert plan.training_seconds_at_most == 120 * 2 * (1 + 3) / 2
    assert list(tmp_path.iterdir()) == []


def test_a_pack_has_no_more_trials_than_pay_on_its_device(config: ComparisonConfig) -> None:
    prepared = prepare(config, lambda text, share=None: None)
    cuda = replace(prepared, base=replace(prepared.base, device=torch.device("cuda")))
    assert (prepared.most_trials, cuda.most_trials) == (8, 16)
    assert plan_rank_comparison(replace(config, seeds=3)).packs == 2


def test_one_seed_gives_no_interval_and_says_so(config: ComparisonConfig, tmp_path: Path) -> None:
    comparison = run_rank_comparison(replace(config, seeds=1, steps=4), run=tmp_path / "run")
    assert all(experiment.accuracy_low is None for experiment in comparison.experiments)
    assert any("one seed" in note for note in comparison.notes)


def test_a_second_process_is_kept_out_of_a_run(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    told = r"in use by another process; .* if no process is at work there, remove its run\.lock$"
    with FileLock(finished.run / "run.lock"), pytest.raises(UserError, match=told):
        run_rank_comparison(config, run=finished.run, resume=True)


def test_a_run_that_another_made_meanwhile_is_not_joined(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading takes a while, and two shells may have started the same command."""

    def other_first(prepared: object) -> int:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "comparison.json").write_text("{}")
        return 0

    monkeypatch.setattr("rankwise.compare.run.disk_bytes", other_first)
    with pytest.raises(UserError, match="continue it with --resume"):
        run_rank_comparison(config, run=tmp_path / "run")


def test_one_validation_example_is_refused_and_few_are_told(config: ComparisonConfig) -> None:
    def notes(**changed: Any) -> list[str]:
        prepared = prepare(replace(config, **changed), lambda text, share=None: None)
        return [note for note in prepared.notes if note.startswith("validation: what ")]

    train, validation = sentences(160, seed=1), sentences(30, seed=2)
    assert notes(validation=validation) == []
    (told,) = notes(validation=validation[:29])
    assert told.startswith("validation: what 29 examples choose (")
    assert told.endswith("is partly chance; give 30 or more")
    grouped = {"train": train.assign(doc="a"), "validation": validation.assign(doc=[f"v{i % 7}" for i in range(30)])}
    (told,) = notes(**grouped, test=sentences(60, seed=3).assign(doc=range(60)), group="doc")
    assert "what 7 groups choose" in told
    assert notes(max_validation_examples=2) != []
    leaked = pd.concat([train[:10], validation[:1]])
    for few in ({"validation": validation[:1]}, {"validation": leaked, "keep_leaked": False}):
        with pytest.raises(UserError, match=r"^validation: 1 example, .*; give at least 2, or better 30$"):
            notes(**few)
        assert notes(**few, learning_rates=(1e-3,)) == []  # nothing is chosen


def test_a_further_scaling_wants_as_many_states_again(config: ComparisonConfig) -> None:
    one = prepare(config, lambda text, share=None: None)
    two = replace(one, config=replace(config, scalings=("alpha/rank", "rslora")))
    trials = most_rates(config) * config.seeds
    states = sum(12 * one.params(rank).total * trials for rank in config.ranks)
    assert disk_bytes(two) - disk_bytes(one) >= states


def test_another_device_of_its_kind_goes_on_with_a_run(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    other = "auto" if config.device == "cpu" and not torch.cuda.is_available() else "cpu"
    assert other != config.device
    again = run_rank_comparison(replace(config, device=other), run=tmp_path / "run", resume=True)
    assert again.experiments == finished.experiments


def test_another_scaling_extends_a_run_and_says_whether_the_conclusion_flips(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    both = run_rank_comparison(replace(config, scalings=("alpha/rank", "rslora")), run=tmp_path / "run", resume=True)
    assert [(row.rank, row.use_rslora) for row in both.experiments] == [(2, False), (4, False), (2, True), (4, True)]
    assert both.experiments[:2] == finished.experiments
    assert both.recommendation == finished.recommendation
    (alternative,) = both.alternatives
    assert alternative.use_rslora in (True, None)
    assert sum(note.startswith("rslora: the conclusion ") for note in both.notes) == 1
    alone = run_rank_comparison(replace(config, scalings=("rslora",)), run=tmp_path / "alone")
    for one, other in zip(both.experiments[2:], alone.experiments, strict=True):
        assert (one.rank, one.learning_rate) == (other.rank, other.learning_rate)
        assert one.nll == pytest.approx(other.nll, rel=1e-3)


@pytest.mark.parametrize(
    ("verdicts", "rank", "said"),
    [
        (("underfits", "sufficient"), 4, "is the same"),
        (("sufficient", "sufficient"), 2, "flips"),
        (("unresolved", "sufficient"), 2, "is another, though nothing shown contradicts this one"),
    ],
)
def test_a_conclusion_flips_where_verdicts_contradict(
    finished: RankComparison, verdicts: tuple[Verdict, ...], rank: int, said: str
) -> None:
    def of(verdicts: tuple[Verdict, ...], rank: int) -> RankComparison:
        rows = [replace(row, verdict=verdict) for row, verdict in zip(finished.experiments, verdicts, strict=True)]
        answer = replace(finished.recommendation, status="resolved", rank=rank, reason="so")
        return replace(finished, experiments=tuple(rows), recommendation=answer)

    note = over_another(of(verdicts, rank), of(("underfits", "sufficient"), 4), "nf4")
    assert note == f"nf4: the conclusion {said}: resolved, r={rank}; so"
    # Of a run whose largest rank has no verdict the other is the reference, which suffices beside itself.
    without = over_another(of(("sufficient", "unresolved"), 2), of(("underfits", "sufficient"), 4), "nf4")
    assert "is another, though nothing shown contradicts this one" in without


def test_the_recommendation_is_the_decision_on_the_scores_on_disk(
    finished: RankComparison, config: ComparisonConfig
) -> None:
    losses = []
    for experiment in finished.experiments:
        trials = [config.trial(experiment.rank, experiment.learning_rate, seed) for seed in config.seed_numbers]
        files = [finished.run / "trials" / trial.id / "scores.parquet" for trial in trials]
        losses.append(np.stack([pd.read_parquet(file)["nll"].to_numpy() for file in files]))
    baseline = pd.read_parquet(finished.run / "baseline" / "scores.parquet")["nll"].to_numpy()
    decision = decide(np.stack(losses), baseline, ranks=(2, 4))
    found = finished.recommendation
    assert (found.rank, found.margin) == (decision.rank, decision.margin)
    assert [row.verdict for row in finished.experiments] == [one.verdict for one in decision.verdicts]
    assert [row.difference for row in finished.experiments] == [one.difference.mean for one in decision.verdicts]
    if found.rank is not None:
        assert json.loads((finished.adapter / "adapter_config.json").read_text())["r"] == found.rank


def _short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """From now on a pack of more than so many trials does not fit."""
    run_pack = backends.run_pack

    def only_small(base: BaseModel, task: Task, trials: Sequence[Trial], *others: Any, **options: Any) -> Any:
        if len(trials) > most:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
            )
        return run_pack(base, task, trials, *others, **options)

    monkeypatch.setattr(backends, "run_pack", only_small)


@pytest.mark.parametrize(("pack_size", "halves"), [(None, [4, 2, 1]), (4, [2, 1])])
def test_packs_that_do_not_fit_are_halved_and_nothing_done_is_lost(
    finished: RankComparison,
    config: ComparisonConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pack_size: int | None,
    halves: list[int],
) -> None:
    _short_of_memory(monkeypatch, most=1)
    halved = run_rank_comparison(replace(config, pack_size=pack_size), run=tmp_path / "run")
    assert [event["size"] for event in journal(halved.run, "out of memory")] == halves
    trained = journal(halved.run, "trained")
    assert {len(event["status"]) for event in trained} == {1}
    assert sum(len(event["status"]) for event in trained) == sum(
        len(event["status"]) for event in journal(finished.run, "trained")
    )
    for one, other in zip(halved.experiments, finished.experiments, strict=True):
        assert (one.rank, one.learning_rate) == (other.rank, other.learning_rate)
        assert one.nll == pytest.approx(other.nll, rel=1e-3)


def test_what_a_pack_held_that_does_not_fit_is_given_back(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before half of it is tried: malloc keeps what is freed, and an error what is in its frames."""
    run_pack = backends.run_pack
    held: list[weakref.ref[torch.Tensor]] = []
    given_back: list[bool] = []

    def only_one(base: BaseModel, task: Task, trials: Sequence[Trial], *others: Any, **options: Any) -> Any:
        if len(trials) > 1:
            activations = torch.ones(8)
            held.append(weakref.ref(activations))
            raise RuntimeError("could not create a primitive")
        return run_pack(base, task, trials, *others, **options)

    monkeypatch.setattr(backends, "run_pack", only_one)
    monkeypatch.setattr(
        "rankwise.compare.training.give_back_freed_memory", lambda: given_back.append(held[-1]() is None)
    )
    run_rank_comparison(replace(config, steps=4, pack_size=4), run=tmp_path / "run")
    assert given_back == [True, True]


@pytest.mark.parametrize("options", [{"ranks": (2, 4, 8), "seeds": 1}, {"strategy": "ladder"}])
def test_no_more_trials_are_scored_together_than_fit(
    options: dict[str, Any], config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is free, and by what was short of memory."""
    seen: list[int] = []

    def counted(base: BaseModel, trials: Sequence[Trial], *others: Any) -> Any:
        seen.append(len(trials))
        return attached(base, trials, *others)

    for module in ("scoring", "cut"):
        monkeypatch.setattr(f"rankwise.compare.{module}.attached", counted)
    monkeypatch.setattr("rankwise.compare.training.trials_that_fit", lambda **of: 2)
    small = replace(config, steps=4, learning_rates=(1e-3,), **options)
    run_rank_comparison(small, run=tmp_path / "free")
    assert max(seen) == 2
    seen.clear()
    monkeypatch.setattr("rankwise.compare.training.trials_that_fit", lambda **of: 8)
    _short_of_memory(monkeypatch, most=1)
    run_rank_comparison(small, run=tmp_path / "short")
    assert set(seen) == {1}


def test_a_halved_run_that_is_killed_ends_with_the_same_numbers(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(config, steps=4)
    _short_of_memory(monkeypatch, most=2)
    whole = run_rank_comparison(small, run=tmp_path / "whole")
    append = Journal.append

    def kill(self: Journal, event: str, **values: Any) -> Event:
        journaled = append(self, event, **values)
        if event == "out of memory":
            raise KilledError
        return journaled

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", kill)
        with pytest.raises(KilledError):
            run_rank_comparison(small, run=tmp_path / "run")
    run_rank_comparison(small, run=tmp_path / "run", resume=True)
    assert numbers(tmp_path / "run") == numbers(whole.run)


def test_where_one_trial_does_not_fit_it_is_told_and_the_run_can_go_on(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        _short_of_memory(patched, most=0)
        with pytest.raises(RunError, match="out of memory: go on with a smaller --pack-size and --resume"):
            run_rank_comparison(replace(config, steps=4), run=tmp_path / "run")
    run_rank_comparison(replace(config, steps=4), run=tmp_path / "run", resume=True)
    assert {len(event["status"]) for event in journal(tmp_path / "run", "trained")} == {1}


def test_a_model_that_was_changed_meanwhile_cannot_go_on(config: ComparisonConfig, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "bert")
    small = replace(config, model=str(model), ranks=(2,), seeds=1, learning_rates=(1e-3,), steps=2)
    run_rank_comparison(small, run=tmp_path / "run")
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"hidden_act": "relu"}))
    with pytest.raises(UserError, match="the model's revision is"):
        run_rank_comparison(small, run=tmp_path / "run", resume=True)


def test_going_on_under_other_versions_is_told_and_recorded(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(config, ranks=(2,), seeds=1, learning_rates=(1e-3,), steps=2)
    before = run_rank_comparison(small, run=tmp_path / "run")
    assert not any("other versions" in note for note in before.notes)
    with monkeypatch.context() as patched:
        patched.setattr("rankwise.compare.prepare.version", lambda name: "9.9")
        run_rank_comparison(replace(small, ranks=(2, 4)), run=tmp_path / "run", resume=True)
    after = run_rank_comparison(replace(small, ranks=(2, 4)), run=tmp_path / "run", resume=True)
    (note,) = [note for note in after.notes if "other versions" in note]
    assert f"; torch {torch.__version__.partition('+')[0]}" in note
    assert "9.9" in note
    assert [event["versions"]["numpy"] for event in journal(tmp_path / "run", "versions")] == [
        np.__version__,
        "9.9",
        np.__version__,
    ]


def test_a_model_that_was_moved_goes_on(config: ComparisonConfig, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "bert")
    small = replace(config, model=str(model), ranks=(2,), seeds=1, learning_rates=(1e-3,), steps=2)
    before = run_rank_comparison(small, run=tmp_path / "run")
    moved = replace(small, model=str(model.rename(tmp_path / "moved")))
    after = run_rank_comparison(replace(moved, ranks=(2, 4)), run=tmp_path / "run", resume=True)
    assert after.experiments[0].nll == before.experiments[0].nll
    assert after.model == moved.model
    another = save_model(tmp_path / "another", "bert", hidden_act="relu")
    with pytest.raises(UserError, match=r"model is .*moved there and .*another here; the model's revision is sha256:"):
        run_rank_comparison(replace(moved, model=str(another), ranks=(2, 4)), run=tmp_path / "run", resume=True)


def test_a_tokenizer_of_another_model_is_told(config: ComparisonConfig, tmp_path: Path) -> None:
    small = save_model(tmp_path / "small", "bert", vocab_size=10)
    with pytest.raises(UserError, match=r"gives token \d+, and the model has 10 token embeddings"):
        run_rank_comparison(replace(config, model=str(small)), run=tmp_path / "run")


def test_another_error_is_never_called_out_of_memory(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_written(*arguments: object, **options: object) -> None:
        raise NotImplementedError("an operator that this device lacks")

    monkeypatch.setattr("rankwise.compare.backends.run_pack", not_written)
    with pytest.raises(NotImplementedError):
        run_rank_comparison(replace(config, steps=4), run=tmp_path / "run")
