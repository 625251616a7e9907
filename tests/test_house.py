"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

import topkast

ROOT = Path(topkast.__file__).parent
FILES = sorted(file for room in ("compiler", "passes", "runtime") for file in (ROOT / room).rglob("*.py"))
SITE = "runtime/state/site.py"


def assigned(file: Path) -> set[tuple[str, str]]:
    """(variable, attribute) of every ``variable.attribute = ...`` in a file."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    written = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return {(node.value.id, node.attr) for node in written if isinstance(node.value, ast.Name)}


def test_the_package_imports_no_tests() -> None:
    """``topkast.tests`` is a folder without ``__init__.py``, so import-linter does not see it."""
    assert FILES
    assert [file for file in FILES if "topkast.tests" in file.read_text(encoding="utf-8")] == []


def test_only_one_file_writes_a_sites_fields() -> None:
    fields = {name for owner, name in assigned(ROOT / SITE) if owner == "self"}
    assert {"step", "refreshed_at", "rule", "broken", "pending"} <= fields
    others = ("site", "copy", "twin", "other", "follower")
    wrong = {(str(file.relative_to(ROOT)), *one) for file in FILES for one in assigned(file)}
    assert {one for one in wrong if one[1] in others and one[2] in fields} == set()
