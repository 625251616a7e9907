"""topkast.tools.fuzz: each planted error of the list still fits the code."""

from __future__ import annotations

import tomllib

import pytest

from topkast.tools.common.places import ROOT

ERRORS = tomllib.loads((ROOT / "tools/fuzz/planted.toml").read_text(encoding="utf-8"))["error"]


@pytest.mark.parametrize("error", ERRORS, ids=[f"{i} {error['file']}" for i, error in enumerate(ERRORS)])
def test_an_error_can_be_planted(error: dict[str, object]) -> None:
    """The text is in its file once, and the tests that must see the error exist."""
    text = (ROOT / str(error["file"])).read_text(encoding="utf-8")
    assert text.count(str(error["old"])) == 1
    tests = error["tests"]
    assert isinstance(tests, list) and tests
    assert all((ROOT / test.split("::")[0]).exists() for test in tests)
