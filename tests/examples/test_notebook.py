"""The example notebook runs from its first cell to its last, and shows its records as tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "rank_comparison.ipynb"
STEPS = 60  # of a trial, as it is written


@pytest.fixture(scope="module", params=[4, pytest.param(STEPS, marks=pytest.mark.slow)], ids="{} steps".format)
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What every code cell gave out, by its id; executed in an empty directory, without a hub."""
    notebook = nbformat.read(EXAMPLE, as_version=4)
    (compare,) = (cell for cell in notebook.cells if cell.id == "compare")
    assert f"    steps={STEPS},\n" in compare.source
    compare.source = compare.source.replace(f"    steps={STEPS},\n", f"    steps={request.param},\n")
    where = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where)
    client.execute(env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def shown(outputs: list[Any]) -> dict[str, str]:
    """What the cell's last expression is shown as, by media type."""
    (result,) = (output for output in outputs if output.output_type == "execute_result")
    return dict(result.data)


def test_no_cell_fails(executed: dict[str, list[Any]]) -> None:
    assert len(executed) == 5
    assert [output for outputs in executed.values() for output in outputs if output.output_type == "error"] == []


@pytest.mark.parametrize(
    ("cell", "caption"),
    [
        ("estimate", "all-minilm-l6-v2: 22,713,986 parameters"),
        ("compare", "classification on embedded"),
        ("answer", "Recommendation"),
    ],
)
def test_records_are_shown_as_tables(executed: dict[str, list[Any]], cell: str, caption: str) -> None:
    data = shown(executed[cell])
    assert f">{caption}</caption>" in data["text/html"]
    assert f"**{caption}**" in data["text/markdown"]


def test_bars_are_shown_in_training(executed: dict[str, list[Any]]) -> None:
    text = "".join(output.text for output in executed["compare"] if output.output_type == "stream")
    assert "training 6 trials to step " in text


def test_it_is_kept_without_its_outputs() -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []
