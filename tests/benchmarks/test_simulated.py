"""The simulated part of the benchmark, small: that what it counts happens at all."""

from __future__ import annotations

from benchmarks.validity.simulated import power


def test_comparisons_that_follow_what_they_need_are_found_and_followed() -> None:
    for row in power(2):
        sufficient = row["sufficient"]
        assert isinstance(sufficient, dict)
        assert sufficient["of"] > 0
