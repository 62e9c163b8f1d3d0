"""`rankwise report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Run directory of a comparison that has ended.")]) -> None:
    """Write the page of a comparison, report.html in its run directory: one file that opens from disk.

    rankwise report runs/demo
    """
    from rankwise.compare.page import write_page

    print(write_page(run))
