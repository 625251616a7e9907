"""The tables of the pages, as Markdown, from the records of options and formats."""

from __future__ import annotations

import re

from topkast.compiler.compile import ARGUMENTS
from topkast.compiler.describe import table
from topkast.passes.onnx.formats import FORMATS


def options() -> str:
    """The options of ``topkast.compile``: name, default, meaning."""
    return table(ARGUMENTS)


def formats() -> str:
    """The formats of ``topkast.export``: name, and how the format stores a sparse weight."""
    lines = ["| format | how sparse weights are stored |", "| --- | --- |"]
    for name, format in FORMATS.items():
        # Roles and double backticks are for docstrings; in Markdown a name stands between single backticks.
        lines.append(f'| `"{name}"` | {re.sub(r":[a-z]+:(?=`)", "", format.sentence).replace("``", "`")} |')
    return "\n".join(lines)
