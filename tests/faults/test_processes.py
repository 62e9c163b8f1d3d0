"""Ctrl-C, once and twice, and two processes that want one run directory."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.test_compare import COMPARE, kept, rankwise, start
from tests.data import write_sentences
from tests.models import save_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    save_model(place / "model", "bert")
    write_sentences(place / "train.csv", 100)
    return place


@contextmanager
def started(place: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A comparison that is training; ended in any case."""
    # Tests that run in the background ignore interrupts, and what they start would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(place, *COMPARE, *options)
    signal.signal(signal.SIGINT, before)
    try:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("training"))
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_a_second_interrupt_changes_nothing(place: Path, pause: float) -> None:
    run = f"runs/twice {pause}"
    with started(place, "--steps", "2000", "--pack-size", "4", "--run", run) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    line = f"rankwise: interrupted; go on with: rankwise compare --run {shlex.quote(run)} --resume"
    assert errors.splitlines()[-1] == line
    assert errors.count("rankwise: ") == 1
    assert "Traceback" not in errors
    assert "Exception" not in errors


def test_a_second_process_is_sent_away_and_the_first_is_not_disturbed(place: Path) -> None:
    options = ("--steps", "300", "--pack-size", "2")
    with started(place, *options, "--run", "runs/shared") as process:
        for more in (("--resume",), ()):
            second = rankwise(place, *COMPARE, *options, "--run", "runs/shared", *more)
            assert second.returncode == 2
            (told,) = (line for line in second.stderr.splitlines() if line.startswith("rankwise: "))
            assert second.stderr.splitlines()[-1] == told
            assert ("in use by another process" if more else "continue it with --resume") in told
        assert process.poll() is None
        process.communicate(timeout=300)
    assert process.returncode == 0
    assert rankwise(place, *COMPARE, *options, "--run", "runs/alone").returncode == 0
    assert kept(place / "runs/shared") == kept(place / "runs/alone")
