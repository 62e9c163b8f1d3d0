"""A bit that flips in a file of a run, or a file that is cut short: told by the file's name, or nothing changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.compare.directory import RunDirectory
from rankwise.compare.journal import Journal
from rankwise.compare.training import read_written, state_digest
from rankwise.errors import RunError, UserError
from rankwise.lora.attach import attached
from rankwise.lora.peft_io import write_adapter
from rankwise.records import Evaluation, Trial, TrialResult
from rankwise.train.checkpoint import PackProgress, read_checkpoint, write_checkpoint
from rankwise.train.loop import PackOptimizer
from rankwise.train.settings import TrainingSettings
from tests.lora.packs import load_case, random_state, targets_of

ROOT = Path(__file__).parents[2]
TRIAL = Trial(2, 4.0, use_rslora=False, learning_rate=1e-3, seed=0)
EVENTS = [{"event": "step", "number": number, "text": "a\nb", "rate": 1e-3 / 3} for number in range(4)]


def some_journal(directory: Path) -> tuple[Path, Callable[[], Any]]:
    path = directory / "journal.jsonl"
    journal = Journal(path)
    for event in EVENTS:
        journal.append(**event)  # type: ignore[arg-type]
    return path, lambda: Journal(path).events


def some_curve(directory: Path) -> tuple[Path, Callable[[], Any]]:
    run = RunDirectory(directory)
    evaluations = (Evaluation(2, 0.5, 0.75), Evaluation(4, 0.25, 0.875))
    run.write_result(TrialResult(TRIAL, "trained", (0.9, 0.7, 0.5, 0.3), evaluations))
    return run.trial(TRIAL) / "curve.parquet", lambda: run.read_result(TRIAL, "trained")


def some_checkpoint(directory: Path) -> tuple[Path, Callable[[], Any]]:
    base = load_case("bert", directory / "model")
    path, plan = directory / "pack.safetensors", TrainingSettings(steps=5)
    with attached(base, [TRIAL], targets_of(base, ["value"])) as pack:
        optimizer = PackOptimizer(pack, plan)
        for row in optimizer.rows:
            row.grad = torch.ones_like(row)
        optimizer.adamw.step()
        progress = PackProgress.start(pack.trials, 5, base.device)
        progress.step, progress.train_nll[:3] = 3, 0.5
        progress.evaluations = [(Evaluation(3, 0.5, 0.75),)]
        write_checkpoint(path, pack, optimizer.adamw, progress)

    def read() -> Any:
        with attached(base, [TRIAL], targets_of(base, ["value"])) as pack:
            optimizer = PackOptimizer(pack, plan)
            found = read_checkpoint([path], pack, optimizer.adamw, 5)
            moments = [optimizer.adamw.state[row]["exp_avg"].tolist() for row in optimizer.rows]
            losses = found.train_nll[: found.step].tolist()
            return found.step, losses, found.evaluations, pack.rows[0].tolist(), moments

    return path, read


def some_adapter(directory: Path) -> tuple[Path, Callable[[], Any]]:
    base, path = load_case("bert", directory / "model"), directory / "adapter"
    targets = targets_of(base, ["value"])
    state = random_state(base, TRIAL, targets)
    write_adapter(path, base, TRIAL, state, targets)
    sha256 = state_digest(state)

    def read() -> Any:
        return {name: tensor.tolist() for name, tensor in read_written(path, base, targets, sha256).items()}

    return path / "adapter_model.safetensors", read


KINDS = {
    "journal": some_journal,
    "curve": some_curve,
    "checkpoint": some_checkpoint,
    "adapter": some_adapter,
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60)
def test_what_is_read_is_what_was_written_or_an_error_names_the_file(
    kind: str, data: st.DataObject, files: dict[str, tuple[Path, Callable[[], Any]]]
) -> None:
    path, read = files[kind]
    whole = path.read_bytes()
    written = read()
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([whole[position] ^ 1 << data.draw(st.integers(0, 7))])
    rest = flipped + whole[position + 1 :] if data.draw(st.booleans()) else b""
    path.write_bytes(whole[:position] + rest)
    told = found = None
    try:
        found = read()
    except (RunError, UserError) as error:
        told = str(error)
    finally:
        path.write_bytes(whole)
    if told is None:
        # A torn last line of a journal is what a kill leaves: what it told is done again.
        assert found == (written[: len(found)] if kind == "journal" else written)
    else:
        assert path.name in told or str(path.parent) in told
        assert "\n" not in told


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Callable[[], Any]]]:
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in KINDS.items()}


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    curve = (float("nan"), float("inf"), 0.1)
    run.write_curve(tmp_path / "trial", curve, ())
    found = pd.read_parquet(tmp_path / "trial" / "curve.parquet")
    np.testing.assert_equal(found["train_nll"].to_numpy(), np.array(curve))
    assert run.read_scores(tmp_path / "trial", "curve.parquet").equals(found)


FLIPS = """
import sys
from pathlib import Path
from rankwise.compare.directory import RunDirectory
from rankwise.errors import RunError
from tests.faults.test_damage import TRIAL, some_curve

path, read = some_curve(Path(sys.argv[1]))
whole = path.read_bytes()
for position in range(len(whole)):
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    try:
        read()
    except RunError:
        pass
"""


def test_no_flipped_bit_of_a_table_ends_the_process(tmp_path: Path) -> None:
    """pyarrow's C++ ends it where it is asked about a column whose description is damaged: nothing could be told."""
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
