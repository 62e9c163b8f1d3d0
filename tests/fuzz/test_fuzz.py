"""Files changed by accident or in malice: an answer, or one line that says why there is none.

`corpus/PARSER/KIND` holds, made small, what once ended in a traceback, a hang or gigabytes.
"""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.mutate import mutated
from benchmarks.fuzz.parsers import PARSERS, Kind, kinds
from rankwise.errors import RunError, UserError

CORPUS = Path(__file__).with_name("corpus")


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Kind]]:
    return {parser: {kind.name: kind for kind in kinds(parser, tmp_path_factory.mktemp(parser))} for parser in PARSERS}


def read(kind: Kind, content: bytes) -> str | None:
    """What the product says against it, None for nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT makes of unknown settings
        try:
            kind(content)
        except (UserError, RunError) as error:
            return str(error)
    return None


@pytest.mark.parametrize("parser", PARSERS)
def test_what_is_valid_is_read(parser: str, every: dict[str, dict[str, Kind]]) -> None:
    """Else nothing behind the first check would be fuzzed."""
    assert {name: read(kind, kind.valid) for name, kind in every[parser].items()} == dict.fromkeys(every[parser])


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*/*/*")), ids=lambda file: str(file.relative_to(CORPUS)))
def test_what_once_broke_it_is_told_in_a_line(file: Path, every: dict[str, dict[str, Kind]]) -> None:
    said = read(every[file.parts[-3]][file.parts[-2]], file.read_bytes())
    assert said is None or ("\n" not in said and len(said) < 2000)


@pytest.mark.parametrize("parser", PARSERS)
@given(which=st.integers(0, 1000), seed=st.integers(0, 2**32))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_is_handed_in_ends_in_an_answer_or_a_line(
    parser: str, which: int, seed: int, every: dict[str, dict[str, Kind]]
) -> None:
    kind = list(every[parser].values())[which % len(every[parser])]
    said = read(kind, mutated(kind.valid, kind.form, random.Random(seed)))
    assert said is None or ("\n" not in said and len(said) < 2000)
