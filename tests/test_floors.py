"""The oldest versions, with which `make floors` runs the tests."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

floors = runpy.run_path(str(Path(__file__).parent.parent / ".ci/floors.py"))["floors"]


def project(*dependencies: str) -> dict[str, Any]:
    return {"dependencies": dependencies, "optional-dependencies": {"offline": [], "quant": ["c>=2"], "ray": []}}


def test_they_are_those_of_the_product_and_its_extras_but_torchs() -> None:
    assert list(floors(project("torch>=2.6", "a-b>=1.2.3", "ray[client]>=2.50"))) == ["a-b==1.2.3", "ray==2.50", "c==2"]


@pytest.mark.parametrize("requirement", ["a", "a<2", "a>=1,<2"])
def test_a_dependency_without_an_oldest_version_is_named(requirement: str) -> None:
    with pytest.raises(SystemExit, match=f"{requirement} names no oldest version"):
        list(floors(project(requirement)))
