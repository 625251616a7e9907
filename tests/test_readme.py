"""The README's lines run as they stand; its table of arguments, the signature and the docstrings have one source."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import topkast
from topkast.tools.common.readme import MARKS, with_table

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_twenty_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert "assert" in lines
    monkeypatch.chdir(tmp_path)  # it writes model.onnx
    exec(compile(lines, "README.md", "exec"), {})


def test_the_table_is_made_from_the_options() -> None:
    """`python -m topkast.tools.common.readme` mends it."""
    assert with_table(README) == README


def test_the_table_names_every_argument() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", README.split(MARKS[0])[1].split(MARKS[1])[0], re.M)
    parameters = inspect.signature(topkast.compile).parameters.values()
    wanted = [(p.name, p.default) for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "model"]
    assert [(name, ast.literal_eval(default)) for name, default in rows] == wanted


@pytest.mark.parametrize("function", [topkast.compile, topkast.sparsify])
def test_the_docstring_says_what_each_argument_means(function: Callable[..., Any]) -> None:
    said = inspect.getdoc(function) or ""
    for name in inspect.signature(function).parameters:
        assert re.search(rf"^    {name}: \S", said, re.M), name
    assert "{options}" not in said and max(map(len, said.splitlines())) <= 120
