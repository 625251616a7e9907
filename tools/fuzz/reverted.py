"""Undo fixes in a copy of the tree, one after the other, and let the fuzzer look for the bug.

`reverted.toml` lists the fixes: the bug, the kind of the fuzzer that must find it, and the changes that undo the fix.
The case that fails must hold in the copy as it is. A bug that is not found makes the exit code 1. Minutes are those of
a core: other work on the machine takes nothing from them. The tree itself is not changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from rich.table import Table

from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import CONSOLE, machine, progress, write

from .planted import copied, edited

REVERTS = Path(__file__).with_name("reverted.toml")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="decides the cases")
    parser.add_argument("--minutes", type=float, default=10.0, help="of a core, for each bug")
    parser.add_argument("--only", nargs="+", default=[], metavar="MENDED", help="only these, such as 1 B")
    parser.add_argument("--out", type=Path, default=RESULTS / "reverted.json", help="the JSON file")
    return parser.parse_args(argv)


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Python in the copy, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(root.parent), "OMP_NUM_THREADS": "1", "TOPKAST_CACHE": folder}
        given = [sys.executable, *command]
        return subprocess.run(given, cwd=folder, env=environment, capture_output=True, text=True)


def fuzz(root: Path, kind: str, seed: int, seconds: float) -> dict[str, Any]:
    """What the fuzzer of the copy finds, as ``find_failure`` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        search = ("-m", "topkast.tools.fuzz.find_failure", kind, str(seed), str(seconds), folder, "1", "processor")
        done = run(root, *search)
        end = Path(folder, "end.json")
        if not end.exists():
            why = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
            return {"cases": {}, "failures": [{"case": Path(folder, "case").read_text(), "error": why}]}
        found: dict[str, Any] = json.loads(end.read_text(encoding="utf-8"))
        return found


def holds(root: Path, kind: str, case: str) -> bool:
    """Whether a case does not fail in the copy."""
    text = "import sys; from topkast.tools.fuzz.find_failure import holds; sys.exit(not holds(*sys.argv[1:]))"
    return run(root, "-c", text, kind, case).returncode == 0


def search(root: Path, revert: dict[str, Any], seed: int, minutes: float) -> dict[str, Any]:
    """Whether the fuzzer finds one bug, and after how many seconds."""
    facts = {key: revert[key] for key in ("mended", "bug", "kind")} | {"seed": seed}
    with edited(root, revert["edits"]):
        found = fuzz(root, revert["kind"], seed, minutes * 60)
    facts |= {"cases before": sum(found["cases"].values())}
    if not found["failures"]:
        return {**facts, "found": False}
    failure = found["failures"][0]
    facts |= {"seconds": failure.get("after"), "seconds of a core": failure.get("after of a core")}
    lines = failure["error"].strip().splitlines()
    # Dynamo writes advice below an error.
    error = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])
    right = holds(root, revert["kind"], failure["case"])
    return {**facts, "found": right, "case": failure["case"], "error": error}


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    reverts = tomllib.loads(REVERTS.read_text(encoding="utf-8"))["revert"]
    reverts = [revert for revert in reverts if not args.only or revert["mended"] in args.only]
    facts, found = machine(), []
    with tempfile.TemporaryDirectory() as folder, progress() as bar:
        root = copied(Path(folder))
        task = bar.add_task("bugs", total=len(reverts))
        for revert in reverts:
            found.append(search(root, revert, args.seed, args.minutes))
            bar.advance(task)
    table = Table("mended", "kind", "found", "after s", "of a core", "error")
    for one in found:
        seconds = str(one.get("seconds")), str(one.get("seconds of a core"))
        table.add_row(one["mended"], one["kind"], str(one["found"]), *seconds, one.get("error", ""))
    CONSOLE.print(table)
    before = json.loads(args.out.read_text(encoding="utf-8"))["found"] if args.out.exists() else []
    names = {one["mended"] for one in found}
    every = [*(one for one in before if one["mended"] not in names), *found]
    every.sort(key=lambda one: str(one["mended"]))
    write(args.out, facts, vars(args) | {"out": args.out.name}, {"found": every})
    return int(not all(one["found"] for one in found))


if __name__ == "__main__":
    sys.exit(main())
