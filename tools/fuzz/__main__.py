"""Plant errors in a copy of the tree, one after the other, and run the tests that must see them.

`planted.toml` lists the errors: a file, the text to replace, the new text, and the tests. An error that no test sees
makes the exit code 1. The tree itself is not changed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from rich.table import Table

from topkast.tools.common.places import RESULTS, ROOT
from topkast.tools.common.results import CONSOLE, progress

ROOMS = ("compiler", "passes", "runtime", "tests", "tools")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", type=Path, default=Path(__file__).with_name("planted.toml"), help="the list")
    parser.add_argument("--only", default="", metavar="TEXT", help="only errors in files whose name contains this")
    parser.add_argument("--long", action="store_true", help="run the long tests too")
    parser.add_argument("--out", type=Path, default=RESULTS / "planted.json", help="the JSON file")
    return parser.parse_args(argv)


def copied(folder: Path) -> Path:
    """A copy of the package in a folder that can stand on PYTHONPATH."""
    root = folder / "topkast"
    root.mkdir()
    for room in ROOMS:
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("__init__.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    return root


def planted(root: Path, error: dict[str, Any], long: bool) -> dict[str, Any]:
    """Whether the tests see one error."""
    path = root / error["file"]
    text = path.read_text(encoding="utf-8")
    if error["old"] not in text:
        return {**error, "seen": None, "by": "the text to replace is not in the file"}
    path.write_text(text.replace(error["old"], error["new"]), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *error["tests"]]
    environment = os.environ | {"PYTHONPATH": str(root.parent), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    try:
        marks = [] if long else ["-m", "not long"]
        done = subprocess.run([*command, *marks], cwd=root, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text, encoding="utf-8")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    seen = {"seen": done.returncode == 1, "by": failed[0][:150] if failed else ""}
    return {**error, **seen, "seconds": round(time.monotonic() - start)}


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    errors = tomllib.loads(args.errors.read_text(encoding="utf-8"))["error"]
    errors = [error for error in errors if args.only in error["file"]]
    found = []
    with tempfile.TemporaryDirectory() as folder, progress() as bar:
        root = copied(Path(folder))
        task = bar.add_task("errors", total=len(errors))
        for error in errors:
            found.append(planted(root, error, args.long))
            bar.advance(task)
    table = Table("file", "seen", "by")
    for one in found:
        table.add_row(one["file"], str(one["seen"]), one["by"])
    CONSOLE.print(table)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(not all(one["seen"] for one in found))


if __name__ == "__main__":
    sys.exit(main())
