"""A comparison with its upper end, full fine-tuning, and with texts that are scored to see what is forgotten."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from rankwise.compare import full
from rankwise.compare.config import ComparisonConfig
from rankwise.compare.forgetting import forgotten
from rankwise.compare.observer import Stage
from rankwise.compare.run import run_rank_comparison
from rankwise.records import RankComparison, Scores
from rankwise.report.tables import comparison_table
from tests.compare.runs import KilledError, given_costs, journal, numbers
from tests.compare.test_instruction_run import conversations, instruction_config
from tests.compare.test_instruction_run import model as model  # a fixture

pytestmark = pytest.mark.usefixtures("given_costs")

TEXT = "two hills and a road by the sea. one tree on the hill, two on the road. "


@pytest.fixture(scope="module")
def config(model: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    data = tmp_path_factory.mktemp("data")
    (data / "other.txt").write_text(TEXT * 8)
    return instruction_config(
        model,
        conversations(data / "train.jsonl", 120),
        retain=data / "other.txt",
        full_learning_rates=(1e-3, 1e-2, 1e6),
    )


@pytest.fixture(scope="module")
def finished(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> RankComparison:
    with given_costs():
        return run_rank_comparison(config, run=tmp_path_factory.mktemp("run") / "first")


def test_all_weights_are_trained_and_gain_over_the_model_as_it_is(finished: RankComparison) -> None:
    assert finished.full is not None
    assert finished.full.trainable_params > 4 * finished.experiments[-1].trainable_params
    assert finished.full.nll < finished.baseline.nll
    assert finished.full.accuracy_low is not None
    assert finished.full.accuracy_low < finished.full.accuracy
    assert json.loads((finished.run / "experiments.json").read_text())["full"]["nll"] == finished.full.nll


def test_its_rate_is_chosen_on_validation_among_those_that_did_not_diverge(finished: RankComparison) -> None:
    events = journal(finished.run, "fine-tuned")
    assert len(events) == 6
    assert [event["status"] for event in events if "lr1000000.0" in event["id"]] == ["diverged", "diverged"]
    means = {
        rate: np.mean([event["validation_nll"] for event in events if f"lr{rate!r}-" in event["id"]])
        for rate in (1e-3, 1e-2)
    }
    assert finished.full is not None
    assert finished.full.learning_rate == min(means, key=lambda rate: means[rate])
    scores = [
        pd.read_parquet(finished.run / "trials" / f"full-lr{finished.full.learning_rate!r}-s{seed}" / "scores.parquet")
        for seed in (0, 1)
    ]
    assert finished.full.nll == pytest.approx(np.mean([one["nll"].mean() for one in scores]))


def test_forgetting_is_what_the_texts_lose_to_rank_0(finished: RankComparison, config: ComparisonConfig) -> None:
    before = pd.read_parquet(finished.run / "baseline" / "retained.parquet")
    assert before["tokens"].tolist() == [47] * (len(before) - 1) + [(8 * len(TEXT) - 1) % 48]
    assert finished.baseline.retained_nll == pytest.approx(before["nll"].mean())
    for row in finished.experiments:
        trials = [config.trial(row.rank, row.learning_rate, seed) for seed in (0, 1)]
        after = [pd.read_parquet(finished.run / "trials" / trial.id / "retained.parquet")["nll"] for trial in trials]
        assert row.retained_nll == pytest.approx(np.mean(after))
        assert row.forgetting == pytest.approx(np.mean(after) - before["nll"].mean(), abs=1e-5)
        assert row.forgetting_low is not None
        assert row.forgetting_high is not None
        assert row.forgetting_low < row.forgetting < row.forgetting_high
    assert finished.full is not None
    assert finished.full.forgetting is not None
    assert "what is forgotten of other texts than those retained" in finished.recommendation.unknown


def test_the_table_shows_both_ends_and_what_is_forgotten(finished: RankComparison) -> None:
    for width in (80, 200):
        console = Console(width=width)
        with console.capture() as captured:
            console.print(comparison_table(finished))
        lines = [line.rstrip() for line in captured.get().splitlines()]
        assert all(len(line) <= width for line in lines)
        assert sum("forgets" in line for line in lines) == 1
        rows = {line.split()[0]: line.split() for line in lines if line.split()[:1] in (["0"], ["1"], ["4"], ["full"])}
        assert list(rows) == ["0", "1", "4", "full"]
        forgetting = {"1": finished.experiments[0].forgetting, "4": finished.experiments[1].forgetting}
        for rank, value in forgetting.items():
            assert rows[rank][-1] == f"{value:+.3f}".replace("-", "−")
        assert rows["0"][-1] == "0"
        assert any("full fine-tuning" in line for line in lines)


def test_a_run_that_is_killed_in_full_fine_tuning_goes_on_to_the_same_numbers(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.train.checkpoint.CheckpointPace.due", lambda self: True)
    shares: list[float] = []

    def killed(event: object) -> None:
        if isinstance(event, Stage) and "rate 0.001, seed 1" in event.text and event.share is not None:
            shares.append(event.share)
            if event.share > 0.5 and shares[0] < 0.5:
                raise KilledError

    with pytest.raises(KilledError):
        run_rank_comparison(config, run=tmp_path / "run", observe=killed)
    assert len(journal(tmp_path / "run", "fine-tuned")) == 1
    assert len(list((tmp_path / "run").rglob("checkpoint.safetensors"))) == 1
    shares.clear()
    again = run_rank_comparison(config, run=tmp_path / "run", resume=True, observe=killed)
    assert shares[0] > 0.5
    assert list((tmp_path / "run").rglob("checkpoint.safetensors")) == []
    assert numbers(tmp_path / "run") == numbers(finished.run)
    assert again.full is not None
    assert finished.full is not None
    assert again.full.nll == finished.full.nll


def test_both_may_be_added_to_a_run_and_nothing_is_trained_twice(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    without = run_rank_comparison(replace(config, retain=None, full_learning_rates=None), run=run)
    assert without.full is None
    assert without.baseline.retained_nll is None
    assert any("not measured" in text for text in without.recommendation.unknown)
    run_rank_comparison(config, run=run, resume=True)
    assert numbers(run) == numbers(finished.run)
    monkeypatch.setattr(full, "fine_tune", lambda *arguments: pytest.fail("trained again"))
    third = run_rank_comparison(config, run=run, resume=True)
    assert third.full is not None
    assert numbers(run) == numbers(finished.run)


def test_other_retained_texts_are_scored_anew(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    short = replace(config, full_learning_rates=None)
    first = run_rank_comparison(short, run=run)
    (tmp_path / "other.txt").write_text("nothing but hills. " * 9)
    other = run_rank_comparison(replace(short, retain=tmp_path / "other.txt"), run=run, resume=True)
    assert other.baseline.retained_nll != finished.baseline.retained_nll
    assert other.experiments[0].nll == finished.experiments[0].nll
    again = run_rank_comparison(short, run=run, resume=True)
    assert again.baseline == first.baseline
    assert [row.forgetting for row in again.experiments] == [row.forgetting for row in first.experiments]


def test_a_full_fine_tuning_of_other_texts_is_trained_anew(config: ComparisonConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = run_rank_comparison(config, run=run)
    (tmp_path / "other.txt").write_text("nothing but hills. " * 9)
    other = run_rank_comparison(replace(config, retain=tmp_path / "other.txt"), run=run, resume=True)
    again = run_rank_comparison(config, run=run, resume=True)
    assert first.full is not None
    assert other.full is not None
    assert again.full is not None
    assert other.full.forgetting != first.full.forgetting == again.full.forgetting


def test_a_text_that_a_rank_can_no_longer_score_leaves_no_limits() -> None:
    def scores(nll: list[list[float]]) -> Scores:
        return Scores(np.array(nll, np.float32), np.ones((len(nll), len(nll[0])), np.float32), None)

    lost = forgotten(scores([[0.5, 0.5]]), scores([[0.75, math.inf], [0.75, 1.0]]), None)
    assert lost["forgetting"] == math.inf
    assert (lost["forgetting_low"], lost["forgetting_high"]) == (None, None)
    finite = forgotten(scores([[0.5, 0.5]]), scores([[0.75, 0.5], [0.75, 1.0]]), None)
    assert finite["forgetting"] == pytest.approx(0.25)
    assert finite["forgetting_low"] is not None


def test_where_memory_is_short_for_it_the_ranks_have_their_answer(
    config: ComparisonConfig, finished: RankComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patched:
        patched.setattr(full, "fine_tune", short)
        without = run_rank_comparison(config, run=tmp_path / "run")
    assert without.full is None
    told = "full fine-tuning: out of memory, so it has no row; where there is more, --resume adds it"
    assert told in without.notes
    assert [row.nll for row in without.experiments] == [row.nll for row in finished.experiments]
    again = run_rank_comparison(config, run=tmp_path / "run", resume=True)
    assert again.full is not None
    assert finished.full is not None
    assert again.full.nll == finished.full.nll
    assert told not in again.notes
