"""Sheets on a terminal. Their text is passed to rich as `Text`, never as markup."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rankwise.report.sheet import Sheet


def terminal_table(sheet: Sheet) -> Table:
    """The sheet without the lines below it; facts without their title, too. No digit is cut off."""
    if not sheet.has_heads:
        table = Table.grid(padding=(0, 2))
    else:
        table = Table(
            title=Text(sheet.title), box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
        )
        for heading in sheet.headings:
            table.add_column(Text(heading.text), justify=heading.justify, overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table


def widest_that_fits(sheets: Iterable[Sheet], console: Console, options: ConsoleOptions) -> Sheet:
    """The first of these, from wide to narrow, whose table the terminal has room for; the last where none fits."""
    boundless = options.update_width(1000)
    for sheet in sheets:
        if Measurement.get(console, boundless, terminal_table(sheet)).maximum <= options.max_width:
            break
    return sheet
