"""Is everything right on this GPU? The tests that need one, spread over the machine's cores."""

from __future__ import annotations

import os
import shutil
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


def run_sanitizer(dry: bool, add: Callable[[dict[str, Any]], None]) -> None:
    """Every product once under NVIDIA's compute-sanitizer, which checks each access of memory. Raises RuntimeError if
    the sanitizer finds something."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if dry or not os.path.exists(tool):
        add({"compute-sanitizer": "not run: " + ("a dry run has no GPU" if dry else "this machine does not have it")})
        return
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", PRODUCTS]
    done = subprocess.run(command, capture_output=True, text=True)
    add({"compute-sanitizer": done.stdout[-1500:], "exit code": done.returncode})
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])


PRODUCTS = """
import torch
from topkast.runtime.kernels.candidates import KERNELS
from topkast.tools.bench.layer import random_layer
for block in [(16, 16), (64, 64), (128, 128)]:
    layer = random_layer((300, 512, 512), block, 0.9, 0.8, torch.device("cuda")).to(torch.bfloat16)
    weight, kernels = (layer.values, layer.index, layer.geometry), KERNELS["triton"].products
    kernels.spmm(layer.x, *weight, None)
    kernels.spmm_t(layer.dy, *weight)
    kernels.sddmm(layer.dy, layer.x, *weight[1:])
torch.cuda.synchronize()
"""


def _workers() -> int:
    return max(1, min(12, (os.cpu_count() or 2) - 2))
