"""Labelled sentences as a rich table, and rich tables as plain text for ``print`` and ``str``."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def labelled(sentences: Iterable[tuple[str, str]]) -> Table:
    """A line, or a few if it is long, for each (label, sentence)."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, sentence in sentences:
        grid.add_row(Text(label, style="bold"), Text(sentence))
    return grid


def to_text(shown: Any, width: int = 100) -> str:
    """The text that a console would print, without colours and without blanks at the ends of lines.

    Args:
        shown: an object that rich can print.
        width: the columns if the output is no terminal; a terminal has its own width.
    """
    columns = shutil.get_terminal_size((width, 0)).columns if sys.stdout.isatty() else width
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
