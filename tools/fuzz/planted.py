"""Plant errors in a copy of the tree, one after the other, and run the tests that must see them.

`planted.toml` lists the errors: a file, the text to replace, the new text, the tests, and `long = true` if only tests
that are marked `long` see the error. An error in C++ is built into the library of the copy. Each test that failed must
pass in the copy without errors; otherwise the test has not seen the error. An error that no test sees makes the exit
code 1. The tree itself is not changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from topkast.tools.common.places import RESULTS, ROOT
from topkast.tools.common.results import CONSOLE, machine, progress, write

ROOMS = ("compiler", "passes", "runtime", "tests", "tools")
BUILT = (".cpp", ".inl", ".h")  # an error in these needs a new library


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", type=Path, default=Path(__file__).with_name("planted.toml"), help="the list")
    parser.add_argument("--only", default="", metavar="TEXT", help="only errors in files whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS / "planted.json", help="the JSON file")
    return parser.parse_args(argv)


def copied(folder: Path) -> Path:
    """A copy of the package in a folder that can stand on PYTHONPATH."""
    root = folder / "topkast"
    root.mkdir()
    for room in ROOMS:
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("__init__.py", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    return root


def failed(root: Path, tests: list[str], long: bool, *options: str) -> list[str]:
    """The tests that fail in the copy, each by its file and name."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options, *tests]
    environment = os.environ | {"PYTHONPATH": str(root.parent), "OMP_NUM_THREADS": "1"}
    marks = [] if long else ["-m", "not long"]
    done = subprocess.run([*command, *marks], cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # pytest found no test, or could not start
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return [line.split(" ", 1)[1].split(" - ")[0] for line in lines]


def build(root: Path) -> None:
    """Build the library of the copy again, in its place."""
    native = root / "runtime" / "native"
    (library,) = native.glob("*.so")
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-psabi"]
    include = [f"-I{folder}" for folder in native.iterdir() if folder.is_dir()]
    subprocess.run(["c++", *options, *include, *map(str, native.glob("*/*.cpp")), "-o", str(library)], check=True)


@contextmanager
def edited(root: Path, edits: list[dict[str, Any]]) -> Iterator[None]:
    """The copy while texts are replaced. ValueError: a text to replace is not in its file, or twice."""
    texts = {edit["file"]: (root / edit["file"]).read_text(encoding="utf-8") for edit in edits}
    try:
        for edit in edits:
            path = root / edit["file"]
            text = path.read_text(encoding="utf-8")
            if text.count(edit["old"]) != 1:
                raise ValueError(f"{edit['file']}: the text to replace is not in the file, or twice: {edit['old']}")
            path.write_text(text.replace(edit["old"], edit["new"]), encoding="utf-8")
        yield
    finally:
        for name, text in texts.items():
            (root / name).write_text(text, encoding="utf-8")


def planted(root: Path, error: dict[str, Any]) -> dict[str, Any]:
    """Whether the tests see one error."""
    path = root / error["file"]
    if path.read_text(encoding="utf-8").count(error["old"]) != 1:
        return {**error, "seen": None, "by": "the text to replace is not in the file, or twice"}
    libraries = {library: library.read_bytes() for library in root.glob("runtime/native/*.so")}
    start = time.monotonic()
    try:
        with edited(root, [error]):
            if path.suffix in BUILT:
                build(root)
            found = failed(root, error["tests"], error.get("long", False), "-x")
    finally:
        for library, content in libraries.items():
            library.write_bytes(content)
    return {**error, "seen": bool(found), "by": "".join(found), "seconds": round(time.monotonic() - start)}


def check_clean(root: Path, found: list[dict[str, Any]]) -> None:
    """Count an error as not seen if the test that failed fails without the error too."""
    tests = sorted({error["by"] for error in found if error["seen"]})
    wrong = failed(root, tests, True) if tests else []
    for error in found:
        if error["seen"] and error["by"] in wrong:
            error.update(seen=False, by=f"{error['by']} fails without the error too")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    errors = tomllib.loads(args.errors.read_text(encoding="utf-8"))["error"]
    errors = [error for error in errors if args.only in error["file"]]
    facts, found = machine(), []
    with tempfile.TemporaryDirectory() as folder, progress() as bar:
        root = copied(Path(folder))
        task = bar.add_task("errors", total=len(errors))
        for error in errors:
            found.append(planted(root, error))
            bar.advance(task)
        check_clean(root, found)
    table = Table("file", "seen", "by")
    for one in found:
        table.add_row(one["file"], str(one["seen"]), one["by"])
    CONSOLE.print(table)
    count = {"errors": len(found), "seen": sum(bool(one["seen"]) for one in found)}
    write(args.out, facts, vars(args), {**count, "found": found})
    return int(count["seen"] < count["errors"])


if __name__ == "__main__":
    sys.exit(main())
