"""Use topkast at random and say what does not hold: a crash, a wrong result, a half-changed model, a raw error.

    python -m topkast.tools.fuzz --seed 3 --minutes 10

Each kind runs in a process of its own, for its share of the time. hypothesis draws the cases from the seed and shrinks
a failure; the smallest program that still fails is printed. Counts are added to the JSON file, by kind. A failure
makes the exit code 1.

- modules: random modules and options, trained beside the masked-dense oracle.
- sequences: random sequences of calls (train, refresh, save, load, copy, surgery, averages, another optimizer).
- checkpoints: damaged and hostile files for load, inference and `topkast report`.
- hostile_onnx: damaged and hostile ONNX files, on a library with sanitizers if `make sanitize` has built it.
- interrupts: Ctrl-C at a random line of refresh, load, compile or save.
- sudden_kills: SIGKILL at a random moment of save.
- wrong_arguments: values that are not allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from topkast.tools.common.places import RESULTS, ROOT
from topkast.tools.common.results import CONSOLE, machine, write

KINDS = ("modules", "sequences", "checkpoints", "hostile_onnx", "interrupts", "sudden_kills", "wrong_arguments")
SANITIZED = ROOT / "build" / "sanitized" / "libtopkast.so"
OUT = RESULTS / "reliability.json"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="decides every case")
    parser.add_argument("--minutes", type=float, default=1.0, help="for all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument(
        "--backend", choices=("drawn", "eager", "aot_eager", "inductor"), default="drawn", help="of modules"
    )
    parser.add_argument("--failures", type=int, default=3, help="a kind ends after so many")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file that counts are added to")
    return parser.parse_args(argv)


def environment(kind: str, backend: str) -> dict[str, str]:
    """What the process of a kind starts with."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", "TOPKAST_FUZZ_BACKEND": backend}
    if kind == "hostile_onnx" and SANITIZED.exists():
        names = ("libasan.so", "libstdc++.so")  # as in the Makefile's target sanitize
        lines = [subprocess.check_output(["c++", f"-print-file-name={name}"], text=True).strip() for name in names]
        found |= {"LD_PRELOAD": " ".join(lines), "TOPKAST_NATIVE": str(SANITIZED), "ASAN_OPTIONS": "detect_leaks=0"}
    return found


def run(kind: str, seed: int, seconds: float, backend: str, most: int = 3) -> dict[str, Any]:
    """Run one kind in a process. A case that ends the process is in the file that the process keeps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "topkast.tools.fuzz.find_failure", kind, str(seed), str(seconds), folder]
        command.append(str(most))
        start = time.monotonic()
        done = subprocess.run(command, env=environment(kind, backend), cwd=folder, capture_output=True, text=True)
        end = Path(folder, "end.json")
        if end.exists():
            found: dict[str, Any] = json.loads(end.read_text())
            return found
        last = Path(folder, "case")
        case = last.read_text() if last.exists() else "none"
        why = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
        after = round(time.monotonic() - start)
        return {"cases": {}, "failures": [{"case": case, "error": why, "after": after}]}


def program(kind: str, failure: dict[str, Any]) -> str:
    """A program that fails."""
    return f"from topkast.tools.fuzz.kinds.{kind} import check\n\ncheck({failure['case']})"


def commit() -> str:
    """The commit of the tree, for the counts; "unknown" outside of a git checkout."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def add(path: Path, kind: str, seed: int, found: dict[str, Any], tree: str) -> dict[str, Any]:
    """The counts of a file and new ones, which are of the commit ``tree``. A seed counts once."""
    counts: dict[str, Any] = json.loads(path.read_text())["kinds"] if path.exists() else {}
    own = counts.setdefault(kind, {"seeds": [], "cases": {}, "failures": 0})
    if seed not in own["seeds"]:
        own["seeds"].append(seed)
        own["commits"] = list(dict.fromkeys([*own.get("commits", []), tree]))
        for word, count in found["cases"].items():
            own["cases"][word] = own["cases"].get(word, 0) + count
        own["failures"] += len(found["failures"])
    return counts


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    facts, failed, tree = machine(), False, commit()
    for kind in args.kinds:
        found = run(kind, args.seed, args.minutes * 60 / len(args.kinds), args.backend, args.failures)
        for failure in found["failures"]:
            failed = True
            CONSOLE.print(f"{kind}: {failure['error']}\n\n{program(kind, failure)}\n", markup=False, highlight=False)
        counts = add(args.out, kind, args.seed, found, tree)
        write(args.out, facts, {}, {"kinds": counts})
    table = Table("kind", "cases", "failures")
    for kind, own in counts.items():
        table.add_row(kind, str(own["cases"]), str(own["failures"]))
    CONSOLE.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
