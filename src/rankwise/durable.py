"""Files and directories that are either whole or absent, whenever the process is killed.

Written beside their place, flushed to the disk, then renamed. A digest that is kept with the data tells whether what is
read is what was written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write` writes to the path that it is given (which has the same suffix)."""
    beside = path.with_name(f".{path.stem}.partial{path.suffix}")
    write(beside)
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def write_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Replace the directory `path` by what `write` puts into the empty directory that it is given."""
    beside, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    write(beside)
    for file in beside.rglob("*"):
        sync(file)
    sync(beside)
    if path.exists():
        path.rename(old)
    beside.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(parts: Mapping[str, bytes | memoryview]) -> str:
    """SHA-256 over names, lengths and bytes, whatever the order of the parts.

    >>> digest({"a": b"1", "b": b"23"}) == digest({"b": b"23", "a": b"1"}) != digest({"a": b"12", "b": b"3"})
    True
    """
    found = hashlib.sha256()
    for name in sorted(parts):
        found.update(f"{name} {memoryview(parts[name]).nbytes}\n".encode())
        found.update(parts[name])
    return found.hexdigest()
