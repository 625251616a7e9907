"""The parts of tools/gpu/gpu.sh, each in a process of its own: one that fails, hangs or fills memory costs only
itself."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import CONSOLE, machine, write

# name -> module, function, seconds it may take, in which of three calls it is run
PARTS = {
    "hardware": ("topkast.tools.gpu.hardware", "run", 40, 1),
    "correct": ("topkast.tools.gpu.correct", "run", 150, 1),
    "sanitizer": ("topkast.tools.gpu.correct", "run_sanitizer", 90, 1),
    "products": ("topkast.tools.gpu.product_times", "run_products", 100, 1),
    "single": ("topkast.tools.gpu.product_times", "run_single", 30, 1),
    "steps": ("topkast.tools.gpu.step_times", "run", 280, 2),
    "decode": ("topkast.tools.gpu.product_times", "run_decode", 50, 2),
    "large": ("topkast.tools.gpu.large_model", "run", 100, 2),
    "headline": ("topkast.tools.gpu.large_model", "run_headline", 460, 3),
}
TOTAL = 460  # seconds, of all parts of a call together: a call of eight minutes also starts and ends

Row = dict[str, Any]


def work(name: str, dry: bool, path: Path) -> None:
    """Run one part in a session of its own; every row it finds is on the disk at once."""
    os.setsid()
    module, function, _, _ = PARTS[name]
    with path.open("a") as file:

        def add(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            CONSOLE.print(f"  {name}: {json.dumps(row)}", highlight=False, soft_wrap=True)

        try:
            getattr(importlib.import_module(module), function)(dry, add)
        except BaseException:
            add({"error": traceback.format_exc()[-3000:]})
            raise


def supervise(name: str, dry: bool, path: Path, limit: float) -> Row:
    """Run one part for at most ``limit`` seconds; what it found, and how it ended."""
    start = time.perf_counter()
    child = multiprocessing.get_context("fork").Process(target=work, args=(name, dry, path))
    child.start()
    child.join(limit)
    ended = "complete" if child.exitcode == 0 else f"failed, exit code {child.exitcode}"
    if child.exitcode is None:
        ended = f"stopped after {limit:.0f} s"
        assert child.pid is not None
        os.killpg(child.pid, signal.SIGKILL)  # with what the part has started: compilers, tests
        child.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    CONSOLE.print(f"{name}: {ended}, {len(rows)} rows, {time.perf_counter() - start:.0f} s", highlight=False)
    return {"ended": ended, "seconds": round(time.perf_counter() - start, 1), "rows": rows}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="toy sizes, on the CPU")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--call", type=int, choices=(1, 2, 3), help="1: what is right, 2: how fast, 3: the headline")
    chosen.add_argument(
        "--parts", nargs="+", choices=PARTS, help="these; without both: all parts of a dry run, or call 1"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    # This process must not touch CUDA, or its children could not.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    everything = args.dry and args.call is None
    parts = args.parts or [name for name, part in PARTS.items() if everything or part[3] == (args.call or 1)]
    facts = machine()
    path = args.out / ("gpu-dry.json" if args.dry else "gpu.json")
    found: dict[str, Row] = json.loads(path.read_text())["parts"] if path.exists() and not args.dry else {}
    end = time.monotonic() + TOTAL
    scratch = Path(os.environ["TOPKAST_CACHE"])
    for name in parts:
        limit = min(PARTS[name][2], end - time.monotonic())
        found[name] = supervise(name, args.dry, scratch / f"{name}.jsonl", max(1.0, limit))
        write(path, facts, {"dry": args.dry}, {"parts": found})
    return 0 if all(found[name]["ended"] == "complete" for name in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
