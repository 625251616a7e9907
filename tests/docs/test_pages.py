"""The code on the pages runs as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from topkast.tests.support.code_blocks import blocks, is_long, run
from topkast.tools.common.places import DOCS

PAGES = sorted(page for page in DOCS.rglob("*.md") if blocks(page))
QUICK = [page for page in PAGES if not is_long(page)]
LONG = [page for page in PAGES if is_long(page)]


def name(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", QUICK, ids=name)
def test_code(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page)


@pytest.mark.long
@pytest.mark.parametrize("page", LONG, ids=name)
def test_code_that_takes_long(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page)


def test_marks_are_obeyed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    fragment = "<!-- fragment: no such name -->\n```python\nno_such_name\n```\n"
    page.write_text(f"```python\na = 1\n```\n\n{fragment}\n```python\na += 1\n```\n")
    assert [block.complete for block in blocks(page)] == [True, False, True]
    assert run(page)["a"] == 2 and not is_long(page)
    page.write_text("<!-- long: it trains -->\n```python\n\nraise ValueError\n```\n")
    assert is_long(page)
    with pytest.raises(ValueError) as found:
        run(page)
    assert found.traceback[-1].lineno + 1 == 4 and str(found.traceback[-1].path) == str(page)


def test_a_fragment_is_still_python(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- fragment: broken -->\n```python\ndef (\n```\n")
    with pytest.raises(SyntaxError):
        run(page)
