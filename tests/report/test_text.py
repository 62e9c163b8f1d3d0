from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.report.text import DASH, bytes_text, nll_text, seconds_text, share_text

BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SECONDS = {"s": 1, "min": 60, "h": 3600}


def read_back(text: str, units: dict[str, int]) -> float:
    words = text.split()
    return sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))


@given(st.integers(0, 10**14))
def test_bytes_are_decimal_and_right_to_half_a_percent(count: int) -> None:
    text = bytes_text(count)
    assert read_back(text, BYTES) == pytest.approx(count, rel=0.005)
    assert "e" not in text


@pytest.mark.parametrize(
    ("count", "text"), [(999_499_999, "999 MB"), (999_500_000, "1 GB"), (0, "0 B"), (2**30, "1.07 GB")]
)
def test_bytes_change_unit_where_the_digits_would_overflow(count: int, text: str) -> None:
    assert bytes_text(count) == text


@given(st.floats(0.001, 10**6))
def test_durations_are_right_to_five_percent(seconds: float) -> None:
    assert read_back(seconds_text(seconds), SECONDS) == pytest.approx(seconds, rel=0.0501)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (3600 * 100, "100 h 00 min")],
)
def test_durations_carry_into_the_larger_unit(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_a_dash(value: float) -> None:
    assert share_text(value) == nll_text(value) == DASH
