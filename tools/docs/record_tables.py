"""The tables of the pages, as Markdown, from the records of options and formats."""

from __future__ import annotations

import re

from topkast.compiler.compile import ARGUMENTS
from topkast.passes.onnx.formats import FORMATS
from topkast.tools.common import markdown


def options() -> str:
    """The options of ``topkast.compile``: name, default, meaning."""
    lines = []
    for option in ARGUMENTS:
        default = repr(option.default).replace("'", '"')
        lines.append([f"`{option.name}`", f"`{default}`", _plain(option.says)])
    return markdown.table(["argument", "default", "meaning"], lines)


def formats() -> str:
    """The formats of ``topkast.export``: name, and how the format stores a sparse weight."""
    lines = [[f'`"{name}"`', _plain(format.sentence)] for name, format in FORMATS.items()]
    return markdown.table(["format", "how sparse weights are stored"], lines)


def _plain(sentence: str) -> str:
    """Roles and double backticks are for docstrings; in Markdown a name stands between single backticks."""
    return re.sub(r":[a-z]+:(?=`)", "", sentence).replace("``", "`")
