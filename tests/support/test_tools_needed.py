"""A tool that is missing: the test is skipped with the reason, and fails in CI, whose script installs every tool."""

from __future__ import annotations

import pytest

from topkast.tests.support.tools_needed import need

MISSING = "no-such-program, no_such_package missing: apt install all"


@pytest.mark.parametrize("ci, outcome", [("true", pytest.fail.Exception), (None, pytest.skip.Exception)])
def test_what_is_missing(ci: str | None, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", ci)
    need(programs=("sh",), packages=("pytest",), get="nothing is missing")
    with pytest.raises(outcome, match=MISSING):
        need(programs=("sh", "no-such-program"), packages=("no_such_package",), get="apt install all")
