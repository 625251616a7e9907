"""Is everything right on this GPU? The tests that need one, spread over the machine's cores."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(dry: bool, add: Callable[[dict[str, Any]], None]) -> None:
    """Raises RuntimeError where a test fails, or none ran."""
    path = Path(os.environ["TOPKAST_CACHE"]) / "tests.xml"
    chosen = (
        ["tests/runtime/triton/test_triton_sets.py", "-k", "columns"]
        if dry
        else ["tests/runtime/triton/test_cuda.py", "-n", str(_workers())]
    )
    # Another torch warns of other things than the one the tests are written with.
    options = ["-q", "-p", "no:cacheprovider", "-W", "default", "-o", "filterwarnings=default", f"--junitxml={path}"]
    env = {key: value for key, value in os.environ.items() if key != "TOPKAST_KERNEL"}
    done = subprocess.run([sys.executable, "-m", "pytest", *chosen, *options], env=env, capture_output=True, text=True)
    cases = list(ET.parse(path).iter("testcase")) if path.exists() else []
    skipped = [case for case in cases if case.find("skipped") is not None]
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    add({"tests": len(cases), "passed": len(cases) - len(skipped) - len(bad), "skipped": len(skipped)})
    for case in bad:
        fault = case.find("failure") if case.find("failure") is not None else case.find("error")
        add({"failed": case.get("name"), "why": (fault.text or "")[-1500:] if fault is not None else ""})
    if done.returncode or len(skipped) == len(cases):
        raise RuntimeError((done.stdout + done.stderr)[-2000:])


def _workers() -> int:
    return max(1, min(12, (os.cpu_count() or 2) - 2))
