"""What a benchmark hands on: the facts of the machine, the JSON file, the progress bar."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import topkast
from topkast.runtime import native
from topkast.tools.common.places import RESULTS

CONSOLE = Console(width=None if sys.stdout.isatty() else 140)  # a pipe would be taken for 80 columns


def machine() -> dict[str, object]:
    """What a figure holds for."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "instruction set": {"torch": torch.backends.cpu.get_cpu_capability(), "topkast": native.isa()},
        "mkl": torch.backends.mkl.is_available(),
        "torch": torch.__version__,
        "topkast": topkast.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load at start": os.getloadavg()[0],
    }


def write(path: Path, facts: dict[str, object], arguments: dict[str, object], found: dict[str, object]) -> None:
    """One JSON file: machine, arguments and what was found."""
    plain = {key: str(value) if isinstance(value, (Path, torch.device)) else value for key, value in arguments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": facts, "arguments": plain, **found}, indent=1) + "\n")
    CONSOLE.print(f"wrote {path}", highlight=False, soft_wrap=True)


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The content of the file of this name: machine, arguments and figures."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def progress() -> Progress:
    """A bar with text, count and time."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=CONSOLE
    )
