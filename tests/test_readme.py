"""The README's lines run as they stand, and its table of arguments is the signature."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import topkast

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_twenty_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert "assert" in lines
    monkeypatch.chdir(tmp_path)  # it writes model.onnx
    exec(compile(lines, "README.md", "exec"), {})


def test_the_table_names_every_argument() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", README, re.M)
    named = {name.strip("`") for row in rows for name in row.split(", ")}
    parameters = inspect.signature(topkast.compile).parameters.values()
    assert named == {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"model"}
