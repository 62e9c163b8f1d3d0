"""Sheets on a terminal. Their text is passed to rich as `Text`, never as markup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
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


def shown(sheet: Sheet) -> RenderableType:
    """The sheet with the lines below it."""
    return Group(terminal_table(sheet), *map(Text, sheet.below))


@dataclass(frozen=True)
class WidestSheet:
    """A table in as many columns as the terminal has room for: rich says how much that is when it prints.

    `sheet` makes the one with so many kinds of columns to spare, of which there are `spare`.
    """

    sheet: Callable[[int], Sheet]
    spare: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        boundless = options.update_width(1000)
        for spare in reversed(range(self.spare + 1)):
            sheet = self.sheet(spare)
            if Measurement.get(console, boundless, terminal_table(sheet)).maximum <= options.max_width:
                break
        yield shown(sheet)
