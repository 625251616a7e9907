"""Texts about formats say what the table of formats says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import topkast
from topkast.compiler.cli.main import main
from topkast.passes.onnx.formats import AUTO, FASTEST_FIRST, FORMATS, SMALLEST
from topkast.runtime.errors import ConfigError
from topkast.tests.support.truth.builders import CASES


def test_the_docstring_lists_the_formats() -> None:
    assert topkast.export.__doc__ is not None
    text = " ".join(topkast.export.__doc__.split("format: how")[1].split("If a format does not suit")[0].split())
    found = dict(re.findall(r'- "(\w+)": (.*?)(?= - "|$)', text))
    found.pop(AUTO)
    assert found == {name: format.sentence for name, format in FORMATS.items()}


def test_an_unknown_format_is_refused_with_all_names(tmp_path: Path) -> None:
    model = topkast.sparsify(CASES["mlp"].model(), 0.9, min_size=100)
    names = ", ".join(repr(name) for name in (AUTO, *FORMATS))
    with pytest.raises(ConfigError, match=re.escape(f"format='zip': must be one of {names}")):
        topkast.export(model, tmp_path / "m.onnx", torch.randn(2, 20), format="zip")


def test_auto_takes_formats_of_the_table() -> None:
    """Those that save time say when, and the last resort says its bytes."""
    assert set(FASTEST_FIRST) == {format for format in FORMATS.values() if format.slower is not None}
    assert SMALLEST in FORMATS.values() and SMALLEST.cost is not None


def test_inspect_explains_the_formats_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = topkast.sparsify(CASES["mlp"].model(), 0.9, min_size=100)
    result = topkast.export(model, tmp_path / "m.onnx", torch.randn(2, 20), format="compact", verify=False)
    assert main(["inspect", str(result.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    used = {site.format for site in result.sites}
    assert "compact" in used
    for name, format in FORMATS.items():
        assert (f"{name}: {format.sentence}" in lines) == (name in used)
