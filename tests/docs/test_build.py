"""`make docs` builds the site without a warning, and a link that leads nowhere is a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from topkast.tools.common.places import DOCS

pytestmark = pytest.mark.long


def build(pages: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of the Makefile on a folder of pages, with the settings of the site."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    return subprocess.run(
        [*command, "-c", str(DOCS), str(pages), str(out)], cwd=DOCS.parent, capture_output=True, text=True
    )


def test_the_site_builds(tmp_path: Path) -> None:
    run = build(DOCS, tmp_path)
    assert run.returncode == 0, run.stderr
    for page in DOCS.rglob("*.md"):
        assert (tmp_path / page.relative_to(DOCS)).with_suffix(".html").is_file(), page


def test_links_to_nowhere_fail(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.md").write_text(
        "# Page\n\n[a page](no-such-page.md)\n\n[a heading](#no-such-heading)\n\n{func}`topkast.no_such_name`\n"
    )
    run = build(pages, tmp_path / "out")
    assert run.returncode != 0
    for name in ("no-such-page", "no-such-heading", "topkast.no_such_name"):
        assert name in run.stderr, run.stderr
