"""The README's lines run as they stand; the signature and the docstrings of the options have one source."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import topkast
from topkast.tests.support.code_blocks import blocks, run
from topkast.tools.common.places import README


def test_the_twenty_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(README)
    assert block.complete and "assert" in block.code
    monkeypatch.chdir(tmp_path)  # it writes model.onnx
    run(README)


@pytest.mark.parametrize("function", [topkast.compile, topkast.sparsify])
def test_the_docstring_says_what_each_argument_means(function: Callable[..., Any]) -> None:
    said = inspect.getdoc(function) or ""
    for name in inspect.signature(function).parameters:
        assert re.search(rf"^    {name}: \S", said, re.M), name
    assert "{options}" not in said and max(map(len, said.splitlines())) <= 120
