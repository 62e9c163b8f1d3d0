"""tqdm's bars as a script shows them; the example notebook shows them in a notebook."""

from __future__ import annotations

import re
from functools import partial

import pytest
from tqdm.auto import tqdm

from rankwise.compare.observer import Stage
from rankwise.progress import bars, tqdm_bars
from tests.progress.events import FIRST_PACK, SECOND_LEG, SECOND_PACK


def shown(err: str) -> list[str]:
    """Every state that the line was in, without what wipes it out."""
    return [state.strip() for state in re.split(r"[\r\n]|\x1b\[A", err) if state.strip()]


def test_what_goes_on_has_a_bar_each_and_training_the_examples_and_losses(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as observe:
        observe(Stage("reading data"))
        observe(Stage("scoring", 0.0))
        observe(Stage("scoring", 0.5))
        observe(SECOND_LEG)
        for report in (FIRST_PACK, SECOND_PACK):
            observe(report)
        observe(SECOND_LEG)
    states = shown(capsys.readouterr().err)
    assert states[0] == "reading data 00:00"
    assert states[1].startswith("scoring:   0%|")
    (training, again) = [state for state in states if " 0.00/6.40k [" in state]
    assert training.startswith("training 4 trials to step 100 of 200:   0%|")
    assert again.startswith("training 4 trials to step 100 of 200:   0%|")


def test_a_bar_is_as_far_as_its_trials(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm_bars, "tqdm", partial(tqdm, mininterval=0))
    monkeypatch.setenv("COLUMNS", "200")  # a rate may have many digits where nothing is trained
    with bars() as observe:
        observe(SECOND_LEG)
        for report in (FIRST_PACK, SECOND_PACK):
            observe(report)
    last = shown(capsys.readouterr().err)[-1]
    assert "75%|" in last
    assert "4.80k/6.40k" in last
    assert last.endswith("examples/s, r=4 0.300, r=16 0.200]")


def test_bars_are_closed_when_a_comparison_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with bars() as observe:
            observe(Stage("reading data"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert capsys.readouterr().err.endswith("\r")
