"""Groups from a column to the answer: its limits count them, however the run came to its examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankwise import ComparisonConfig, RankComparison, UserError, run_rank_comparison
from rankwise.decide.interval import crossed_interval
from rankwise.decide.verdict import decide
from tests.compare.runs import tiny_comparison
from tests.data import sentences

pytestmark = pytest.mark.usefixtures("given_costs")


def documents(count: int) -> np.ndarray:
    """Of six sentences each, in no order."""
    return np.random.default_rng(0).permutation(count) // 6


def in_documents(split: str, count: int, seed: int) -> pd.DataFrame:
    frame = sentences(count, seed)
    names = [f"{split} {number}" for number in documents(count)]
    return frame.assign(sentence=f"{split} " + frame["sentence"], document=names)


TEST = in_documents("test", 60, 3)
GROUPS = documents(60)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    return tiny_comparison(
        tmp_path_factory.mktemp("model") / "bert",
        train=in_documents("train", 120, 1),
        validation=in_documents("validation", 36, 2),
        test=TEST,
        group="document",
        keep_leaked=False,
        learning_rates=(5e-3,),
        steps=20,
        evaluations=2,
    )


@pytest.fixture(scope="module")
def finished(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> RankComparison:
    return run_rank_comparison(config, run=tmp_path_factory.mktemp("runs") / "run")


def scores(comparison: RankComparison, config: ComparisonConfig, column: str) -> np.ndarray:
    """Of ranks, seeds and test examples, by the order of the source."""
    found = []
    for row in comparison.experiments:
        trials = [config.trial(row.rank, row.learning_rate, seed) for seed in config.seed_numbers]
        files = [pd.read_parquet(comparison.run / "trials" / trial.id / "scores.parquet") for trial in trials]
        found.append([file.sort_values("example_id")[column].to_numpy(dtype=float) for file in files])
    return np.array(found)


def agrees(comparison: RankComparison, config: ComparisonConfig) -> None:
    """With the limits and verdicts of the scores on disk, grouped as the source has them."""
    correct, nll = scores(comparison, config, "correct"), scores(comparison, config, "nll")
    for row, of_rank in zip(comparison.experiments, correct, strict=True):
        limits, alone = crossed_interval(of_rank, groups=GROUPS), crossed_interval(of_rank)
        assert limits.low is not None
        assert limits.low != alone.low
        assert row.accuracy_low == pytest.approx(max(0.0, limits.low))
    rank_0 = pd.read_parquet(comparison.run / "baseline" / "scores.parquet").sort_values("example_id")["nll"]
    decision = decide(nll, rank_0.to_numpy(), ranks=(2, 4), groups=GROUPS)
    assert comparison.recommendation.rank == decision.rank
    for row, verdict in zip(comparison.experiments, decision.verdicts, strict=True):
        assert row.verdict == verdict.verdict
        assert (row.difference_low, row.difference_high) == (
            pytest.approx(verdict.difference.low),
            pytest.approx(verdict.difference.high),
        )
    assert "limits count the 10 groups that the 60 test examples are of" in comparison.notes


def test_limits_and_verdicts_count_groups(finished: RankComparison, config: ComparisonConfig) -> None:
    agrees(finished, config)


def test_a_run_that_is_extended_counts_the_groups_of_all_its_examples(
    finished: RankComparison, config: ComparisonConfig, tmp_path: Path
) -> None:
    small = run_rank_comparison(replace(config, max_test_examples=24), run=tmp_path / "run")
    (note,) = [note for note in small.notes if note.startswith("limits count the ")]
    assert note.endswith("groups that the 24 test examples are of")
    extended = run_rank_comparison(replace(config, max_test_examples=1000), run=tmp_path / "run", resume=True)
    agrees(extended, config)
    for one, other in zip(extended.experiments, finished.experiments, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-3)


def test_a_run_without_groups_is_another(finished: RankComparison, config: ComparisonConfig) -> None:
    with pytest.raises(UserError, match="group is document there and not given here"):
        run_rank_comparison(replace(config, group=None), run=finished.run, resume=True)


def test_other_groups_are_other_data(finished: RankComparison, config: ComparisonConfig) -> None:
    other = TEST.assign(document=TEST["document"].replace("test 0", "test 1"))
    with pytest.raises(UserError, match="the test data differ"):
        run_rank_comparison(replace(config, test=other), run=finished.run, resume=True)
