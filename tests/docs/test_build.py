"""`make docs` builds the site without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from topkast.tools.common.places import DOCS


@pytest.mark.long
def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    run = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for page in DOCS.rglob("*.md"):
        assert (tmp_path / page.relative_to(DOCS)).with_suffix(".html").is_file(), page
