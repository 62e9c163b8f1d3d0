"""Lines of text files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rankwise.errors import UserError


def lines_of(path: Path) -> Iterator[str]:
    """Lines as UTF-8, a byte order mark dropped. Bytes are split first, so a bad one has a line number."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8"
                ) from error
