"""`inspect` on adapters that were trained on tasks whose rank is known, far above that rank."""

from __future__ import annotations

import pytest

from benchmarks.planted_spectrum import trained_spectrum


@pytest.mark.parametrize(("planted", "steps"), [(2, 100), (4, 150), (8, 200), (16, 400)])
def test_the_gap_is_after_the_rank_that_was_planted(planted: int, steps: int) -> None:
    """In a taught module either there is none yet, or it is there; and in one at least it is there."""
    spectrum = trained_spectrum(planted, seed=planted, steps=steps, batch_size=128, rate=0.02)
    assert {module.rank for module in spectrum.modules} == {32}
    assert set(spectrum.overall.gaps) == {planted}


def test_before_directions_are_learned_there_is_no_gap() -> None:
    assert trained_spectrum(16, seed=16, steps=100).overall.gaps == ()
