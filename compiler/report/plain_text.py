"""Rich tables as plain text, for ``print`` and ``str``."""

from __future__ import annotations

import io
import shutil
import sys
from typing import Any

from rich.console import Console


def to_text(shown: Any, width: int) -> str:
    """What a console would print, without colours and without blanks at the ends of lines.

    Args:
        shown: an object that rich can print.
        width: the columns if the output is no terminal; a terminal has its own width.
    """
    columns = shutil.get_terminal_size((width, 0)).columns if sys.stdout.isatty() else width
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
