"""The Python code of a Markdown page, run as a reader would run it: all blocks in order, as one program.

A block that is no complete program carries a mark with the reason on the line before it, and is only compiled::

    <!-- fragment: the loop of a user -->
    ```python
    ...
    ```

A page whose code takes longer than a few seconds has a line ``<!-- long: why -->``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^(<!-- fragment: .+ -->\n+)?```python\n(.*?)^```$", re.M | re.S)
LONG = re.compile(r"^<!-- long: .+ -->$", re.M)


@dataclass(frozen=True)
class Block:
    """A block of a page: its code, the line where the code begins, and whether the code is complete."""

    code: str
    line: int
    complete: bool


def blocks(page: Path) -> list[Block]:
    """The blocks of Python in a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[2], text.count("\n", 0, found.start(2)) + 1, found[1] is None) for found in BLOCK.finditer(text)
    ]


def is_long(page: Path) -> bool:
    """Whether the page says that its code takes long."""
    return LONG.search(page.read_text(encoding="utf-8")) is not None


def run(page: Path) -> dict[str, Any]:
    """Run the complete blocks of a page in one namespace, and return the namespace.

    A traceback shows the line of the page. The code may write files: run it in an empty folder.
    """
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        lines = "\n" * (block.line - 1) + block.code
        code = compile(lines, str(page), "exec", dont_inherit=True)
        if block.complete:
            exec(code, names)
    return names
