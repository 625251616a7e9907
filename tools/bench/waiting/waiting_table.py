"""The five scripts in fresh processes: first with empty caches ("cold"), then again with what the first run left.

A machine that others use makes seconds long; CPU seconds, which stand beside them, are hardly affected.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from topkast.tools.common.results import CONSOLE

from .child import SIDES
from .scripts import SCRIPTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--script", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))


def run(args: argparse.Namespace) -> dict[str, object]:
    """All scripts and sides, each in a process of its own. An eager model has no caches, so it runs once."""
    backend = "aot_eager" if args.quick else "inductor"
    imports = {name: import_seconds(name) for name in ("torch", "topkast")}
    rows = []
    for script in args.script:
        for side in SIDES:
            with tempfile.TemporaryDirectory() as folder:
                for caches in ("cold",) if side == "eager" else ("cold", "warm"):
                    CONSOLE.print(f"{script}, {side}, {caches}", highlight=False)
                    rows.append(
                        {"script": script, "side": side, "caches": caches, **child(script, side, backend, folder)}
                    )
    CONSOLE.print(waiting_table(rows))
    return {"imports": imports, "rows": rows}


def import_seconds(package: str) -> dict[str, float]:
    """Seconds and CPU seconds of an import in a new process, the least of three. ``topkast`` imports torch as well."""
    code = "import time; s = time.perf_counter(); import " + package
    code += "; print(time.perf_counter() - s, time.process_time())"
    found = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        found.append([float(one) for one in done.stdout.split()])
    return dict(zip(("seconds", "cpu seconds"), map(min, zip(*found, strict=True)), strict=True))


def child(script: str, side: str, backend: str, folder: str) -> dict[str, Any]:
    """What a script cost in a process of its own, whose caches lie in a folder."""
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"), "TOPKAST_CACHE": str(Path(folder) / "topkast")}
    command = [sys.executable, "-m", f"{__package__}.child", script, side, backend]
    done = subprocess.run(command, env={**os.environ, **caches}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def waiting_table(rows: list[dict[str, Any]]) -> Table:
    """Both sides of each script beside each other."""
    table = Table(title="waiting: seconds (CPU seconds), [eager /] dense with torch.compile / topkast")
    for head in ("script", "caches", "first step", "whole script", "graphs", "planner's problems"):
        table.add_column(head, justify="left" if head == "script" else "right")
    for script, caches in dict.fromkeys((row["script"], row["caches"]) for row in rows):
        sides = [row for row in rows if (row["script"], row["caches"]) == (script, caches)]
        first, last = ([row["steps"][at] for row in sides] for at in (0, -1))
        table.add_row(
            script,
            caches,
            *(" / ".join(f"{s['seconds']:.1f} ({s['cpu seconds']:.1f})" for s in steps) for steps in (first, last)),
            " / ".join(str(step["graphs"]) for step in last),
            str(sides[-1]["measured"]),
        )
    return table
