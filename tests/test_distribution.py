"""What is built for others to install: what it holds, and that it works where there is nothing of this checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.data import write_sentences
from tests.models import save_model

pytestmark = pytest.mark.slow

HOME = Path(__file__).parent.parent
USER_SCRIPT = """
from pathlib import Path

from rankwise import ComparisonConfig, RankComparison, UserError, estimate_lora_params, run_rank_comparison


def smallest(model: str) -> int | None:
    config = ComparisonConfig(model=model, train="train.csv", text="sentence", ranks=(2, 4))
    try:
        comparison: RankComparison = run_rank_comparison(config, run=Path("runs/one"))
    except UserError as error:
        print(error)
        return None
    print([experiment.accuracy for experiment in comparison.experiments])
    return comparison.recommendation.rank


print(estimate_lora_params("Qwen/Qwen3-8B", 16).total)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is built from the sdist, and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, HOME], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment that has the wheel and what it asks for."""
    place = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(place, with_pip=True)
    pip = [place / "bin/python", "-m", "pip", "install", "-q", "-c", HOME / "constraints.txt"]
    (wheel,) = built.glob("*.whl")
    for what in ("torch", wheel):
        subprocess.run([*pip, what], check=True)
    return place / "bin"


def run(*words: str | Path, place: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    (information,) = {name.split("/")[0] for name in names} - {"rankwise"}
    assert f"{information}/licenses/LICENSE" in names
    source = HOME / "src"
    ours = {str(file.relative_to(source)) for file in (source / "rankwise").rglob("*") if file.is_file()}
    assert {name for name in names if name.startswith("rankwise/")} == {
        name for name in ours if "__pycache__" not in name
    }
    assert {"rankwise/py.typed", "rankwise/base/catalogue.json", "rankwise/report/templates/page.html"} <= names


def test_the_sdist_has_the_licence_and_no_leftovers(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "src/rankwise/py.typed"} <= names
    assert {name for name in names if name.startswith((".venv", "runs/", "dist/")) or "__pycache__" in name} == set()


def test_it_works_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model", "bert")
    write_sentences(tmp_path / "train.csv", 100)
    assert "compare" in run(installed / "rankwise", "--help", place=tmp_path)
    names = "import rankwise; print([getattr(rankwise, name).__name__ for name in rankwise.__all__])"
    assert "run_rank_comparison" in run(installed / "python", "-c", names, place=tmp_path)
    formula = ("estimate", "model", "--ranks", "4", "--method", "formula", "--seq-len", "48", "--json")
    assert json.loads(run(installed / "rankwise", *formula, place=tmp_path))
    compare = ("compare", "--model", "model", "--train", "train.csv", "--text", "sentence", "--ranks", "2,4")
    cheap = ("--learning-rates", "1e-3", "--seeds", "1", "--steps", "3", "--max-length", "48", "--run", "run", "--json")
    rows = json.loads(run(installed / "rankwise", *compare, *cheap, place=tmp_path))["experiments"]
    assert [row["rank"] for row in rows] == [2, 4]
    assert "<html" in (tmp_path / "run/report.html").read_text()


def test_a_users_script_is_checked_against_its_types(installed: Path, tmp_path: Path) -> None:
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed / "python"), "user.py")
    (tmp_path / "user.py").write_text(USER_SCRIPT)
    assert "Success" in run(*mypy, place=tmp_path)
    (tmp_path / "user.py").write_text(USER_SCRIPT.replace("ranks=(2, 4)", "ranks='2,4'"))
    wrong = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'Argument "ranks" to "ComparisonConfig" has incompatible type' in wrong.stdout
