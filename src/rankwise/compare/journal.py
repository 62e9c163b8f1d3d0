"""What happened in a run, in order: one JSON object a line, appended and flushed to the disk.

A process can die while it writes, so a torn last line is what a kill looks like: it is left out, and goes when the next
is written. A line
that cannot be read anywhere else, or is not what was written by its checksum, means that the file was damaged, and
nothing is guessed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import RunError, reason_of, shortened
from rankwise.records import Baseline

Event = dict[str, Any]
Check = Callable[[Any], bool]


class Journal:
    """The journal at `path`, made where there is none; `events` are those that were found and appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from error
        whole = content[: content.rfind(b"\n") + 1]
        # Who only reads leaves it: it may be a line that another process is about to end.
        self._torn_at = len(whole) if len(whole) < len(content) else None
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self.events.append(_event(line))
            except (ValueError, TypeError, RecursionError) as error:
                raise RunError(
                    f"{path}, line {number}: damaged ({reason_of(error)}); "
                    "restore the file from a copy, or start a new run"
                ) from error

    def append(self, event: str, **values: Any) -> Event:
        """Record an event and return it; it is on the disk by then."""
        if self._torn_at is not None:
            os.truncate(self.path, self._torn_at)
            self._torn_at = None
        record = {"event": event, **values}
        with self.path.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.events.append(record)
        return record

    @property
    def seconds(self) -> float:
        """What all that is journaled took, over all starts of the run."""
        return sum(float(event.get("seconds", 0.0)) for event in self.events)

    def of(self, event: str) -> list[Event]:
        """All events of one kind, in order."""
        return [record for record in self.events if record["event"] == event]


def validation_baseline(journal: Journal) -> Baseline:
    """Rank 0 on validation, of which the fit on the test split's behalf kept a record."""
    return Baseline(**journal.of("baseline")[-1]["validation"])


def _line(event: Event) -> bytes:
    return json.dumps({**event, "crc32": zlib.crc32(json.dumps(event).encode())}).encode() + b"\n"


def _event(line: bytes) -> Event:
    event = dict(json.loads(line))
    checksum = event.pop("crc32", None)
    if zlib.crc32(json.dumps(event).encode()) != checksum:
        raise ValueError("its checksum is another" if checksum is not None else "it has no checksum")
    for name, fits in ({"event": _text, "seconds": _seconds} | _FIELDS.get(str(event.get("event")), {})).items():
        if not fits(event.get(name)):
            raise ValueError(f"{name} of {shortened(event.get('event'))} is {shortened(event.get(name))}")
    return event


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    """A file's name that leads nowhere else: paths are made of it."""
    return _text(value) and value not in ("", ".", "..") and not {"/", "\\", "\0"} & set(value) and len(value) < 200


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _figure(value: Any) -> bool:
    return _whole(value) or isinstance(value, float)


def _seconds(value: Any) -> bool:
    return value is None or _figure(value)


def _yes_or_no(value: Any) -> bool:
    return isinstance(value, bool)


def _or_none(fits: Check) -> Check:
    return lambda value: value is None or fits(value)


def _several(fits: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _some(fits: Check) -> Check:
    return lambda value: bool(value) and _several(fits)(value)


def _by_name(fits: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(_name, value)) and all(map(fits, value.values()))


def _record(fields: Mapping[str, Check]) -> Check:
    """Of these fields and no others."""
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == fields.keys()
        and all(fits(value[name]) for name, fits in fields.items())
    )


_TRIAL = {
    "rank": lambda value: _whole(value) and value > 0,
    "alpha": _figure,
    "use_rslora": _yes_or_no,
    "learning_rate": _figure,
    "seed": _whole,
}
_STEP = {"basis": lambda value: isinstance(value, dict), "budget": _or_none(_figure), "found": _several(_text)}
_STEP |= {"rank": _or_none(_whole), "stopped": _or_none(_text), "looked": _yes_or_no, "follows": _yes_or_no}

# What each event must hold, whoever wrote it: a checksum tells damage, not malice.
_FIELDS: dict[str, dict[str, Check]] = {
    "versions": {"versions": _by_name(_text)},
    "baseline": {
        "examples": _whole,
        "validation": lambda value: (
            isinstance(value, dict)
            and {"accuracy", "nll"} <= value.keys() <= {"accuracy", "nll", "retained_nll"}
            and all(map(_or_none(_figure), value.values()))
        ),
    },
    "retained": {"trials": _several(_name), "sha256": _text},
    "costs": {
        "ranks": _several(_record({"rank": _whole, "seconds": _figure, "peak_bytes": _or_none(_whole)})),
    },
    "pack size": {"ranks": _some(_whole), "size": lambda value: _whole(value) and value > 0},
    "out of memory": {"pack": _name, "size": lambda value: _whole(value) and value > 0},
    "plan": {
        "start": _whole,
        "stop": _whole,
        "packs": _some(_record({"pack": _name, "trials": _some(_record(_TRIAL))})),
    },
    "taken back": {"packs": _some(_name)},
    "trained": {
        "pack": _name,
        "status": _by_name(lambda value: value in ("trained", "dropped", "diverged")),
        "sha256": _by_name(_text),
    },
    "scored": {"trials": _several(_name), "examples": _whole},
    "fine-tuned": {
        "id": _name,
        "examples": _whole,
        "retained": _or_none(_text),
        "status": _text,
        "validation_nll": _figure,
        "step_seconds": _figure,
        "peak_bytes": _or_none(_whole),
        "params": _whole,
    },
    "cut": {
        "trials": _several(_name),
        "ranks": _several(_whole),
        "nll": _several(_figure),
        "accuracy": _several(_figure),
    },
    "decided": {
        "ranks": _several(_whole),
        "learning_rates": _several(_figure),
        "seeds": _whole,
        "examples": _whole,
        "status": _text,
    },
    "reported": {"to": _text, "run": _text, "status": _text},
    "grouped": {"name": _text, "id": _text},
    "escalation": _STEP,
    "ladder": _STEP,
}
