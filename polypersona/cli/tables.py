"""A table as plain text: the same words for a terminal, a pipe and a log."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def render_table(table: Table, width: int = 150) -> str:
    """Return the table's lines, without colours or spaces at their ends, each with its newline."""
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
