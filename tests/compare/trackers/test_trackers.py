"""One suite over every back end; the real packages, with stores of their own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rankwise.compare.trackers import BACK_ENDS, check_installed, connect
from rankwise.compare.trackers.tracker import SUMMARY, Group, Tracker
from rankwise.errors import UserError
from tests.compare.trackers import seen as seen_in
from tests.compare.trackers.seen import Seen

SEEN: dict[str, Callable[[Group], dict[str, Seen]]] = {
    "tensorboard": seen_in.in_tensorboard,
    "mlflow": seen_in.in_mlflow,
    "wandb": seen_in.in_wandb,
    "trackio": seen_in.in_trackio,
}
PARAMS = {"rank": 4, "alpha": 8.5, "use_rslora": True, "model": "a/model"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(params=sorted(SEEN))
def name(request: pytest.FixtureRequest, store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A back end that is installed, and keeps what it is told on this machine."""
    name = str(request.param)
    pytest.importorskip(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(store / "trackio"))
    for variable in ("MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_DIR", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    return name


@pytest.fixture
def group(tmp_path: Path) -> Group:
    (tmp_path / "my run").mkdir()
    return Group("my run", f"{abs(hash(tmp_path)):x}", tmp_path / "my run")


@pytest.fixture
def tracker(name: str, group: Group) -> Tracker:
    return connect(name, group)


def test_the_suite_has_every_back_end() -> None:
    assert SEEN.keys() == BACK_ENDS.keys()


@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")  # MLflow's store asks SQLAlchemy for it
class TestEveryBackEnd:
    def test_runs_side_by_side_are_kept_apart(self, name: str, tracker: Tracker, group: Group) -> None:
        assert [tracker.open(run, PARAMS | {"seed": seed}) for seed, run in enumerate(("r4-s0", "r4-s1"))] == [-1, -1]
        for step in (1, 2, 5):
            tracker.log("r4-s0", {step: {"train/nll": step / 4}})
            tracker.log("r4-s1", {step: {"train/nll": step / 2}})
        tracker.log("r4-s0", {6: {"train/nll": 0.5, "validation/nll": 0.25, "validation/accuracy": 1.0}})
        tracker.close("r4-s0", {"status": "trained"})
        tracker.close("r4-s1", {"status": "dropped"})
        runs = SEEN[name](group)
        runs.pop(SUMMARY, None)  # MLflow's parent
        assert runs["r4-s0"].figures == {
            "train/nll": [(1, 0.25), (2, 0.5), (5, 1.25), (6, 0.5)],
            "validation/nll": [(6, 0.25)],
            "validation/accuracy": [(6, 1.0)],
        }
        assert runs["r4-s1"].figures == {"train/nll": [(1, 0.5), (2, 1.0), (5, 2.5)]}
        assert [runs[run].outcome for run in sorted(runs)] == [{"status": "trained"}, {"status": "dropped"}]
        wanted = {name: str(value) for name, value in PARAMS.items()}
        assert [runs[run].params for run in sorted(runs)] == [wanted | {"seed": "0"}, wanted | {"seed": "1"}]

    def test_a_loss_that_is_not_finite_is_shown_as_such(self, name: str, tracker: Tracker, group: Group) -> None:
        tracker.open("r4-s0", PARAMS)
        tracker.log("r4-s0", {1: {"train/nll": 0.5}, 2: {"train/nll": math.nan}})
        tracker.close("r4-s0", {"status": "diverged"})
        (_, first), (_, second) = SEEN[name](group)["r4-s0"].figures["train/nll"]
        assert first == 0.5
        assert math.isnan(second)

    def test_a_long_curve_is_taken_at_once(self, name: str, tracker: Tracker, group: Group) -> None:
        points = {step: {"train/nll": step / 8, "validation/nll": 0.5} for step in range(1, 1_202)}
        tracker.open("r4-s0", PARAMS)
        tracker.log("r4-s0", points)
        tracker.close("r4-s0", {"status": "trained"})
        assert SEEN[name](group)["r4-s0"].figures == {
            "train/nll": [(step, step / 8) for step in points],
            "validation/nll": [(step, 0.5) for step in points],
        }

    def test_a_run_that_has_ended_goes_on_as_the_same_run(self, name: str, tracker: Tracker, group: Group) -> None:
        tracker.open("r4-s0", PARAMS)
        tracker.log("r4-s0", {1: {"train/nll": 0.5}, 3: {"train/nll": 0.25}})
        tracker.close("r4-s0", {"status": "interrupted"})
        later = connect(name, group)
        last = later.open("r4-s0", PARAMS)
        assert last == (-1 if name == "wandb" else 3)  # offline there is nobody to ask
        later.log("r4-s0", {5: {"train/nll": 0.125}})
        later.close("r4-s0", {"status": "trained"})
        runs = SEEN[name](group)
        assert runs.keys() - {SUMMARY} == {"r4-s0"}
        assert runs["r4-s0"].figures == {"train/nll": [(1, 0.5), (3, 0.25), (5, 0.125)]}
        assert runs["r4-s0"].outcome == {"status": "trained"}

    def test_after_a_kill_a_run_knows_what_reached_it(self, name: str, group: Group) -> None:
        killed = (
            "import os, pathlib, sys\n"
            "from rankwise.compare.trackers import connect\n"
            "from rankwise.compare.trackers.tracker import Group\n"
            "tracker = connect(sys.argv[1], Group(sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])))\n"
            "tracker.open('r4-s0', {'rank': 4})\n"
            "tracker.log('r4-s0', {7: {'train/nll': 0.5}})\n"
            "os._exit(9)\n"
        )
        words = (name, group.name, group.id, str(group.directory))
        # W&B's processes join the service of the one that started them, which outlives a child.
        alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        assert subprocess.run([sys.executable, "-c", killed, *words], env=alone, check=False).returncode == 9
        later = connect(name, group)
        last = later.open("r4-s0", {"rank": 4})
        reached = {
            "tensorboard": (7,),
            "mlflow": (7,),
            "trackio": (7, -1),
            "wandb": (-1,),
        }  # sent by and by, or offline
        assert last in reached[name]
        later.log("r4-s0", {8: {"train/nll": 0.25}})
        later.close("r4-s0", {"status": "trained"})
        runs = SEEN[name](group)
        assert runs.keys() - {SUMMARY} == {"r4-s0"}
        assert runs["r4-s0"].figures["train/nll"][-1] == (8, 0.25)

    def test_nothing_is_said_on_standard_output(
        self, name: str, group: Group, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """`--json` prints its document there."""
        tracker = connect(name, group)
        tracker.open("r4-s0", PARAMS)
        tracker.log("r4-s0", {1: {"train/nll": 0.5}})
        tracker.close("r4-s0", {"status": "trained"})
        assert capfd.readouterr().out == ""


def test_a_run_of_wandb_goes_on_behind_the_last_step_of_the_server(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    asked = {}

    def resumed(**options: object) -> object:
        asked.update(options)
        return type("Run", (), {"starting_step": 8})

    tracker = connect("wandb", group)
    monkeypatch.setattr(wandb, "init", resumed)
    assert tracker.open("r4-s0", PARAMS) == 7
    assert (asked["project"], asked["id"], asked["resume"]) == ("mine", f"{group.id}-r4-s0", "allow")


def test_wandb_asks_for_no_key_in_the_midst_of_the_work(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "setup", lambda: type("", (), {"settings": type("", (), {"mode": "online"})}))
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with pytest.raises(UserError, match=r"wandb cannot be used \(nobody is logged in: wandb login, or set WANDB_MODE="):
        connect("wandb", group)


def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError) as error:
        check_installed(["mlflow", "wandb"])
    assert str(error.value) == "report-to: mlflow, wandb not installed: pip install 'rankwise[trackers]'"
    check_installed([])


def test_a_back_end_that_cannot_be_used_is_told_in_one_line(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(group: Group) -> Tracker:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(BACK_ENDS, "mlflow", unreachable)
    with pytest.raises(UserError, match=r"mlflow cannot be used \(no route to host\); put that right and go on with"):
        connect("mlflow", group)
