"""What trackers are told of a real run, and what a run does when they fail; TensorBoard's files are the witness."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise import ComparisonConfig, RankComparison, run_rank_comparison
from rankwise.compare.directory import RunDirectory
from rankwise.compare.journal import Journal
from rankwise.compare.observer import Planned
from rankwise.compare.reporting import Reporting, curve
from rankwise.compare.trackers import BACK_ENDS
from rankwise.compare.trackers.tracker import Group, Points, Values
from rankwise.errors import UserError
from rankwise.records import Baseline, Evaluation, Trial, TrialResult, TrialStatus
from rankwise.train.loop import StepReport
from tests.compare.runs import KilledError, given_costs, journal, numbers
from tests.compare.trackers.seen import Seen, in_tensorboard
from tests.data import sentences
from tests.models import save_model

pytestmark = pytest.mark.usefixtures("given_costs")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ComparisonConfig:
    return ComparisonConfig(
        model=str(save_model(tmp_path_factory.mktemp("model") / "bert", "bert")),
        train=sentences(80, seed=1),
        validation=sentences(20, seed=2),
        test=sentences(30, seed=3),
        text="sentence",
        ranks=(2, 4),
        learning_rates=(1e-3, 5e-3),
        seeds=1,
        steps=8,
        batch_size=4,
        max_length=24,
        evaluations=2,
        dtype="float32",
        device="cpu",
        pack_size=2,
        keep_leaked=True,
        report_to="tensorboard",
    )


@pytest.fixture(autouse=True)
def _every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.train.loop._REPORT_SECONDS", 0.0)
    monkeypatch.setattr("rankwise.compare.reporting._PAUSE", 0)


@pytest.fixture(scope="module")
def finished(config: ComparisonConfig, tmp_path_factory: pytest.TempPathFactory) -> RankComparison:
    with given_costs(), pytest.MonkeyPatch.context() as patched:
        patched.setattr("rankwise.train.loop._REPORT_SECONDS", 0.0)
        patched.setattr("rankwise.compare.reporting._PAUSE", 0)
        return run_rank_comparison(config, run=tmp_path_factory.mktemp("runs") / "first look")


def in_run(run: Path) -> dict[str, Seen]:
    return in_tensorboard(Group("", "", run))


def ids(run: Path) -> set[str]:
    return {path.name for path in (run / "trials").iterdir()}


def check_curves(run: Path) -> None:
    """Every trial is one run with every step once, and its validation scores are those on disk."""
    runs = in_run(run)
    assert runs.keys() == ids(run) | {"comparison"}
    for trial in ids(run):
        on_disk = pd.read_parquet(run / "trials" / trial / "curve.parquet").set_index("step")
        figures = runs[trial].figures
        assert [step for step, _ in figures["train/nll"]] == on_disk.index.tolist()
        means = on_disk["train_nll"].expanding().mean().tolist()
        assert [loss for _, loss in figures["train/nll"]] == pytest.approx(means)
        for name in ("nll", "accuracy"):
            scored = on_disk[f"validation_{name}"].dropna()
            assert figures[f"validation/{name}"] == [(step, pytest.approx(value)) for step, value in scored.items()]


def test_each_trial_is_a_run_with_its_curve_and_status(finished: RankComparison, config: ComparisonConfig) -> None:
    check_curves(finished.run)
    runs = in_run(finished.run)
    outcomes: dict[str, dict[str, str]] = {}
    for event in journal(finished.run, "trained"):
        outcomes |= {trial: {"status": status} for trial, status in event["status"].items()}
    assert {trial: runs[trial].outcome for trial in ids(finished.run)} == outcomes
    params = {row.rank: row.trainable_params for row in finished.experiments}
    assert runs["r4-a16-lr0.005-s0"].params == {
        **{"rank": "4", "alpha": "16", "use_rslora": "False", "learning_rate": "0.005", "seed": "0"},
        **{"trainable_params": str(params[4]), "model": config.model, "base": "float32", "task": "classification"},
    }


def test_the_answer_is_a_run_with_the_table_by_rank(finished: RankComparison) -> None:
    answer = in_run(finished.run)["comparison"]
    assert answer.outcome["status"] == finished.recommendation.status
    assert answer.outcome["reason"] == finished.recommendation.reason
    assert answer.outcome["rank"] == str(finished.recommendation.rank or "none")
    for name in ("accuracy", "nll"):
        by_rank = {0: getattr(finished.baseline, name)} | {row.rank: getattr(row, name) for row in finished.experiments}
        assert answer.figures[name] == [(rank, pytest.approx(value)) for rank, value in by_rank.items()]
    seconds = [row.training_time_seconds for row in finished.experiments]
    assert [value for _, value in answer.figures["training_time_seconds"]] == pytest.approx(seconds)


def test_going_on_with_a_finished_run_tells_nothing_again(finished: RankComparison, config: ComparisonConfig) -> None:
    before = sorted((finished.run / "tensorboard").rglob("*"))
    run_rank_comparison(config, run=finished.run, resume=True)
    assert sorted((finished.run / "tensorboard").rglob("*")) == before


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_goes_on_has_every_trial_once(
    killed: bool,
    finished: RankComparison,
    config: ComparisonConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports = 0

    def kill(event: object) -> None:
        nonlocal reports
        reports += isinstance(event, StepReport)
        if reports == 11:
            raise KilledError

    close = Reporting.close
    if killed:
        monkeypatch.setattr(Reporting, "close", lambda self: None)
    with pytest.raises(KilledError):
        run_rank_comparison(config, run=tmp_path / "run", observe=kill)
    monkeypatch.setattr(Reporting, "close", close)
    assert ({"status": "interrupted"} in [seen.outcome for seen in in_run(tmp_path / "run").values()]) == (not killed)
    run_rank_comparison(config, run=tmp_path / "run", resume=True)
    check_curves(tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(finished.run)


class Witness:
    """A tracker that writes down what it is told, and can fail."""

    def __init__(self, group: Group) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.fails_at: str | None = None
        self.seconds = 0.0

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        if what[0] == self.fails_at:
            raise ConnectionError("the server\nis gone")

    def open(self, run: str, params: Values) -> int:
        self._tell("open", run)
        return -1

    def log(self, run: str, points: Points) -> None:
        self._tell("log", run, *points)

    def close(self, run: str, outcome: Values) -> None:
        self._tell("close", run, outcome)


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    witness = Witness(Group("", "", Path()))
    monkeypatch.setitem(BACK_ENDS, "wandb", lambda group: witness)
    monkeypatch.setattr("rankwise.compare.run.check_installed", lambda names: None)
    return witness


def test_a_tracker_that_fails_is_left_alone_and_no_number_changes(
    witness: Witness,
    finished: RankComparison,
    config: ComparisonConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And one that is named when all is trained, or named again, is told everything then."""
    witness.fails_at = "log"
    run_rank_comparison(replace(config, report_to="wandb"), run=tmp_path / "run")
    assert [call[0] for call in witness.told].count("log") == 1
    ours = [record.message for record in caplog.records if record.name.startswith("rankwise")]
    assert ours == ["report-to: wandb failed (the server is gone); the comparison goes on without it"]
    assert numbers(tmp_path / "run") == numbers(finished.run)

    witness.fails_at, witness.told = None, []
    run_rank_comparison(replace(config, report_to="wandb,tensorboard"), run=tmp_path / "run", resume=True)
    assert {call[1] for call in witness.told if call[0] == "close"} == ids(tmp_path / "run") | {"comparison"}
    late, live = in_run(tmp_path / "run"), in_run(finished.run)
    assert late.keys() == live.keys()
    for trial in ids(finished.run):
        assert late[trial].outcome == live[trial].outcome
        assert late[trial].figures["validation/nll"] == live[trial].figures["validation/nll"]
        assert [step for step, _ in late[trial].figures["train/nll"]] == [
            step for step, _ in live[trial].figures["validation/nll"]
        ]


TRIALS = tuple(Trial(rank, float(rank), False, 1e-3, 0) for rank in (2, 4))


def reporting(run: Path, names: str) -> Reporting:
    return Reporting(
        names.split(","), RunDirectory(run), Journal(run / "journal.jsonl"), shared={}, params=lambda trial: {}
    )


def results(*statuses: TrialStatus) -> dict[Trial, TrialResult]:
    return {trial: TrialResult(trial, status, (1.0,), ()) for trial, status in zip(TRIALS, statuses, strict=False)}


@pytest.mark.parametrize("method", ["open", "log", "close"])
def test_the_others_go_on_where_one_fails(
    method: str, witness: Witness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Witness(Group("", "", Path()))
    monkeypatch.setitem(BACK_ENDS, "trackio", lambda group: other)
    witness.fails_at = method
    both = reporting(tmp_path, "wandb,trackio")
    both.step(StepReport(TRIALS, 1, (0.5, 0.25), None))
    both.settle(results("trained", "trained"))
    assert [call[0] for call in witness.told].count(method) == 1
    assert witness.told[-1][0] == method
    assert [call[0] for call in other.told] == ["open", "open", "log", "log", "close", "close"]
    assert [event["to"] for event in journal(tmp_path, "reported")] == ["trackio", "trackio"]


def test_only_what_has_changed_is_told_of_a_comparison_that_has_grown(witness: Witness, tmp_path: Path) -> None:
    reporting(tmp_path, "wandb").settle(results("dropped"))
    reporting(tmp_path, "wandb").settle(results("dropped", "trained"))
    reporting(tmp_path, "wandb").settle(results("trained", "trained"))
    first, second = (trial.id for trial in TRIALS)
    assert [call for call in witness.told if call[0] == "close"] == [
        ("close", first, {"status": "dropped"}),
        ("close", second, {"status": "trained"}),
        ("close", first, {"status": "trained"}),
    ]


def test_a_trial_that_trained_on_is_ended_again_though_it_is_dropped_again(witness: Witness, tmp_path: Path) -> None:
    reporting(tmp_path, "wandb").settle(results("dropped"))
    further = reporting(tmp_path, "wandb")
    further.step(StepReport(TRIALS[:1], 3, (0.5,), (Evaluation(3, 0.4, 0.8),)))
    further.settle(results("dropped"))
    further.close()
    assert [call[2] for call in witness.told if call[0] == "close"] == [{"status": "dropped"}] * 2


def test_a_trial_that_goes_no_further_is_ended_when_the_next_leg_begins(
    witness: Witness, config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker's open run takes a descriptor, and there may be hundreds of trials."""
    rank_0 = Baseline(accuracy=0.5, nll=math.inf)  # which every trial beats, so that the worse half is dropped
    monkeypatch.setattr("rankwise.compare.training.validation_baseline", lambda journal: rank_0)
    dropped: set[str] = set()
    ended: list[set[str]] = []

    def observe(event: object) -> None:
        if isinstance(event, Planned):
            dropped.update(trial.id for trial in event.dropped)
        elif isinstance(event, StepReport) and event.step > 4:
            ended.append({call[1] for call in witness.told if call[0] == "close"})

    run_rank_comparison(replace(config, report_to="wandb"), run=tmp_path / "run", observe=observe)
    assert dropped
    assert all(dropped <= before for before in ended)
    closed = {call[1]: call[2]["status"] for call in witness.told if call[0] == "close"}
    assert {closed[trial] for trial in dropped} == {"dropped"}
    assert len([call for call in witness.told if call[0] == "close"]) == len(closed)
    points = [(call[1], step) for call in witness.told if call[0] == "log" for step in call[2:]]
    assert len(set(points)) == len(points)


def test_each_look_at_a_comparison_is_a_run(witness: Witness, finished: RankComparison, tmp_path: Path) -> None:
    """One that has grown may have another answer, and figures at the same ranks."""
    looks = Journal(tmp_path / "journal.jsonl")
    for _ in range(2):
        looks.append("decided", ranks=[1], learning_rates=[1e-3], seeds=1, examples=1, status="no_gain", rank=None)
        for _ in range(2):
            reporting(tmp_path, "wandb").conclude(finished)
    assert [call[1] for call in witness.told if call[0] == "close"] == ["comparison", "comparison-2"]


def test_a_slow_tracker_is_told_less_between_evaluations_and_of_each_evaluation(
    witness: Witness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a server that takes a second would make a step that takes a tenth as slow as itself."""
    now = 100.0
    monkeypatch.setattr("rankwise.compare.reporting._PAUSE", 20)
    monkeypatch.setattr("rankwise.compare.reporting.time.monotonic", lambda: now)
    log = witness.log

    def slowly(run: str, points: Points) -> None:
        nonlocal now
        now += 0.1
        log(run, points)

    monkeypatch.setattr(witness, "log", slowly)
    slow, trial = reporting(tmp_path, "wandb"), TRIALS[0]
    for step in range(1, 61):
        last = Evaluation(30, 0.4, 0.8)
        slow.step(StepReport((trial,), step, (0.5,), (last,) if step >= 30 else None))
        now += 0.1
    # A tenth of a second each, twenty times that between them: every 20 steps, and the evaluation begins anew.
    assert [call[2] for call in witness.told if call[0] == "log"] == [1, 21, 30, 50]


def test_a_curve_is_told_at_every_twentieth_step_and_each_evaluation() -> None:
    losses = tuple(float(step) for step in range(1, 51))
    evaluations = (Evaluation(25, 0.5, 0.75), Evaluation(50, 0.25, 1.0))
    points = curve(TrialResult(TRIALS[0], "trained", losses, evaluations))
    assert points == {
        20: {"train/nll": 10.5},
        25: {"train/nll": 15.5, "validation/nll": 0.5, "validation/accuracy": 0.75},
        40: {"train/nll": 30.5},
        50: {"train/nll": 40.5, "validation/nll": 0.25, "validation/accuracy": 1.0},
    }


def test_a_tracker_that_cannot_be_used_is_told_before_anything_is_trained(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(group: Group) -> Witness:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(BACK_ENDS, "tensorboard", unreachable)
    with pytest.raises(UserError, match=r"tensorboard cannot be used \(no route to host\); .* --resume"):
        run_rank_comparison(config, run=tmp_path / "run")
    assert not (tmp_path / "run/trials").exists()
