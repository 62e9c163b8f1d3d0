from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.compare.journal import Journal
from rankwise.errors import RunError


def written(path: Path, count: int) -> bytes:
    journal = Journal(path)
    for number in range(count):
        journal.append("step", number=number, text="a\nb")
    return path.read_bytes()


def test_events_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("a", x=1)
    journal.append("b", x=2)
    journal.append("a", x=3)
    assert journal.of("a") == Journal(path).of("a") == [{"event": "a", "x": 1}, {"event": "a", "x": 3}]


@given(st.data())
@settings(max_examples=50)
def test_a_kill_at_any_byte_loses_only_the_line_that_was_being_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    content = written(path, 3)
    kept = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:kept])
    journal = Journal(path)
    whole = content[:kept].count(b"\n")
    assert [event["number"] for event in journal.events] == list(range(whole))
    # Who reads it may not be who writes it.
    assert path.read_bytes() == content[:kept]
    journal.append("step", number=99)
    assert [event["number"] for event in Journal(path).events] == [*range(whole), 99]


@pytest.mark.parametrize("damage", [b"{", b"[1]", b"\x00\xff"])
def test_damage_before_the_last_line_is_never_guessed_at(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path, 3).splitlines(keepends=True)
    path.write_bytes(lines[0] + damage + b"\n" + lines[2])
    with pytest.raises(RunError, match="line 2: damaged"):
        Journal(path)
