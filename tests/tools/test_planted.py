"""topkast.tools.fuzz: planted errors of the list still fit the code, and fixes of the other list can be undone."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from topkast.tools.common.places import ROOT
from topkast.tools.fuzz import planted, reverted

ERRORS = tomllib.loads((ROOT / "tools/fuzz/planted.toml").read_text(encoding="utf-8"))["error"]


@pytest.mark.parametrize("error", ERRORS, ids=[f"{i} {error['file']}" for i, error in enumerate(ERRORS)])
def test_an_error_can_be_planted(error: dict[str, object]) -> None:
    """The text is in its file once, and the tests that must see the error exist."""
    text = (ROOT / str(error["file"])).read_text(encoding="utf-8")
    assert text.count(str(error["old"])) == 1
    tests = error["tests"]
    assert isinstance(tests, list) and tests
    assert all((ROOT / test.split("::")[0]).exists() for test in tests)


REVERTS = tomllib.loads(reverted.REVERTS.read_text(encoding="utf-8"))["revert"]


@pytest.mark.parametrize("revert", REVERTS, ids=[revert["mended"] for revert in REVERTS])
def test_a_fix_can_be_undone(revert: dict[str, Any], tmp_path: Path) -> None:
    """Each changed file is still Python, and comes back as it was."""
    before = {}
    for edit in revert["edits"]:
        path = tmp_path / edit["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / edit["file"], path)
        before[path] = path.read_text(encoding="utf-8")
    with planted.edited(tmp_path, revert["edits"]):
        for path, text in before.items():
            changed = path.read_text(encoding="utf-8")
            assert changed != text
            compile(changed, str(path), "exec")
    assert all(path.read_text(encoding="utf-8") == text for path, text in before.items())


def test_a_bug_counts_as_found_only_if_the_fixed_tree_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("right = 1\n")
    edit = {"file": "file.py", "old": "right = 1", "new": "right = 2"}
    revert = {"mended": "0", "bug": "a bug", "kind": "modules", "edits": [edit]}
    failure = {"case": "()", "error": "Traceback\nAssertionError: wrong", "after": 30, "after of a core": 3}

    def fuzz(root: Path, kind: str, seed: int, seconds: float) -> dict[str, Any]:
        return {"cases": {"held": 4}, "failures": [failure] * (file.read_text() == "right = 2\n")}

    monkeypatch.setattr(reverted, "fuzz", fuzz)
    for right in (True, False):
        monkeypatch.setattr(reverted, "holds", lambda root, kind, case, right=right: right)
        found = reverted.search(tmp_path, revert, 5, 1.0)
        assert found["found"] is right and found["error"] == "AssertionError: wrong" and found["cases before"] == 4
        assert (found["seconds"], found["seconds of a core"]) == (30, 3)
    assert file.read_text() == "right = 1\n"
    revert["edits"] = [{"file": "file.py", "old": "right = 1", "new": "right = 3"}]
    assert reverted.search(tmp_path, revert, 5, 1.0)["found"] is False
