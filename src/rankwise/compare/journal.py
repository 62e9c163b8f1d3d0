"""What happened in a run, in order: one JSON object a line, appended and flushed to the disk.

A process can die while it writes, so a torn last line is what a kill looks like: it is dropped. A line
that cannot be read anywhere else, or is not what was written by its checksum, means that the file was damaged, and
nothing is guessed.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from rankwise.errors import RunError

Event = dict[str, Any]


class Journal:
    """The journal at `path`, made where there is none; `events` are those that were found and appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self.events.append(_event(line))
            except (ValueError, TypeError) as error:
                raise RunError(
                    f"{path}, line {number}: damaged ({error}); restore the file from a copy, or start a new run"
                ) from error
        if len(whole) < len(content):
            os.truncate(path, len(whole))

    def append(self, event: str, **values: Any) -> None:
        """Record an event; it is on the disk when this returns."""
        record = {"event": event, **values}
        with self.path.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.events.append(record)

    @property
    def seconds(self) -> float:
        """What all that is journaled took, over all starts of the run."""
        return sum(float(event.get("seconds", 0.0)) for event in self.events)

    def of(self, event: str) -> list[Event]:
        """All events of one kind, in order."""
        return [record for record in self.events if record["event"] == event]


def _line(event: Event) -> bytes:
    return json.dumps({**event, "crc32": zlib.crc32(json.dumps(event).encode())}).encode() + b"\n"


def _event(line: bytes) -> Event:
    event = dict(json.loads(line))
    checksum = event.pop("crc32", None)
    if zlib.crc32(json.dumps(event).encode()) != checksum:
        raise ValueError("its checksum is another" if checksum is not None else "it has no checksum")
    return event
