from __future__ import annotations

import pytest

from rankwise.errors import UserError
from rankwise.memory.gpus import gpu_bytes


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("rtx4090", 24564),
        ("RTX 4090", 24564),
        ("NVIDIA GeForce RTX 4090", 24564),
        ("a100-80", 81920),
        ("A100 80GB", 81920),
        ("a100_40", 40960),
        ("H200", 143771),
        ("24GiB", 24 * 1024),
        ("1024 MiB", 1024),
    ],
)
def test_names_and_sizes(name: str, mib: int) -> None:
    assert gpu_bytes(name) == mib * 2**20


@pytest.mark.parametrize("name", ["rtx4091", "", "24", "24 bananas", "-1GiB", "0GiB"])
def test_what_is_no_gpu_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match="gpu") as raised:
        gpu_bytes(name)
    assert "\n" not in str(raised.value)


def test_the_nearest_names_are_given() -> None:
    with pytest.raises(UserError, match="rtx4090"):
        gpu_bytes("rtx4091")
