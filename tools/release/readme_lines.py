"""Run the README's lines with another interpreter, in an empty folder, without a compiler and without this clone."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

from topkast.tools.common.places import README, ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
# Printed after the lines, so that their reader sees which files ran.
SHOW = "\nprint('topkast', topkast.__version__, topkast.__file__)\nprint('library', topkast.onnx.library_path())\n"


def readme_lines() -> str:
    """The README's only block of Python."""
    (code,) = BLOCK.findall(README.read_text(encoding="utf-8"))
    return str(code)


def run_in_emptiness(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with an interpreter that finds no program, no compiler and no file of this clone.

    Args:
        python: the interpreter of an environment.
        code: the program.

    Raises:
        AssertionError: the interpreter imports topkast from this clone.
    """
    # Absolute, but with its links: an environment is known by the place of the link.
    python = Path(os.path.abspath(python))
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PATH": folder, "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(python), "-I", "-c", code], cwd=folder, env=environment, capture_output=True, text=True
        )
    assert f"{ROOT}/__init__.py" not in done.stdout, done.stdout
    return done
