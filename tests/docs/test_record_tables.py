"""The tables of the pages name every option and every format, with the texts that the docstrings have."""

from __future__ import annotations

import ast
import inspect
import re

import topkast
from topkast.passes.onnx.formats import FORMATS
from topkast.tools.common.places import DOCS
from topkast.tools.docs import record_tables as tables


def test_the_options_are_the_arguments_of_compile() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| .+ \|$", tables.options(), re.M)
    parameters = inspect.signature(topkast.compile).parameters.values()
    wanted = [(p.name, p.default) for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "model"]
    assert [(name, ast.literal_eval(default)) for name, default in rows] == wanted


def test_the_formats_are_those_of_export() -> None:
    rows = re.findall(r'^\| `"(\w+)"` \| (.+) \|$', tables.formats(), re.M)
    assert [name for name, _ in rows] == list(FORMATS)
    for name, sentence in rows:
        assert not re.search(r":\w+:`|``", sentence), name  # marks of docstrings
        assert sentence.replace("`", "") == re.sub(r":\w+:|`", "", FORMATS[name].sentence)


def test_the_tables_are_on_the_pages() -> None:
    pages = [page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md")]
    for directive in ("options", "formats"):
        assert sum(f"```{{{directive}}}" in page for page in pages) == 1, directive
