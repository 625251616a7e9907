"""The command ``topkast doctor``: check the machine and the installation, and say how to get what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from topkast.compiler.capture.cpp_compiler import MISSING as NO_COMPILER
from topkast.compiler.capture.cpp_compiler import has_compiler
from topkast.compiler.compile import compile
from topkast.compiler.report.shown.plain_text import labelled
from topkast.runtime.extras import EXTRAS, missing
from topkast.runtime.kernels import native_library
from topkast.runtime.planner import cache

from .answer import Answer, harmless

NAME = "doctor"
HELP = "check the machine and the installation, time one layer, and say what is missing"
EXAMPLES = ("topkast doctor", "topkast doctor --json > machine.json")
PACKAGES = ("topkast", "torch", "numpy", "networkx", "safetensors", "rich", "onnx", "onnxruntime", "scipy", "triton")
SECONDS = 2.0  # of the speed test, after the first step
WIDTH, BATCH = 1024, 256
NO_KERNELS = (
    "no native kernels, so products run on plain PyTorch, slower than dense. Install a wheel of topkast for this "
    "machine, or install topkast from its sources where there is a C++17 compiler"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument("--no-speed", action="store_true", help="leave out the speed test of two seconds")


def answer(args: argparse.Namespace) -> Answer:
    """The facts, the speed test and what is missing. The status is 1 if something is missing that training needs."""
    library = native_library.path()
    data: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "kernels": None if library is None else str(library),
        "instructions": native_library.isa(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "compiler": has_compiler(),
        "cache": str(cache.folder()),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }
    checks = ((NO_KERNELS, library is not None), (NO_COMPILER, data["compiler"]))
    needed = [sentence for sentence, present in checks if not present]
    optional = [f"{', '.join(missing(extra))}: pip install 'topkast[{extra}]'" for extra in EXTRAS if missing(extra)]
    data |= {"missing": needed, "missing_extras": optional}
    if not args.no_speed:
        data["speed"] = speed(SECONDS)
    return Answer(
        data, [labelled((label, harmless(text)) for label, text in _sentences(data))], status=int(bool(needed))
    )


def speed(seconds: float) -> dict[str, float]:
    """Time training steps of one linear layer, dense and sparse in turn.

    Args:
        seconds: for how long steps are timed, after the first ones.

    Returns:
        The fastest steps in milliseconds, ``dense_ms`` and ``sparse_ms``, because other programs only slow a step down;
        and their ``ratio``; below 1: sparse is faster.
    """
    inputs = torch.randn(BATCH, WIDTH, requires_grad=True)
    dense = torch.nn.Linear(WIDTH, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing is listed in the answer
        sparse = compile(torch.nn.Linear(WIDTH, WIDTH), 0.9, 0.8, refresh_every=10**9, backend="aot_eager")
        for layer in (dense, sparse):
            for _ in range(3):
                layer(inputs).sum().backward()
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, layer in (("dense", dense), ("sparse", sparse)):
            begin = time.perf_counter()
            layer(inputs).sum().backward()
            times[name].append(1000 * (time.perf_counter() - begin))
    found = {f"{name}_ms": min(values) for name, values in times.items()}
    return found | {"ratio": found["sparse_ms"] / found["dense_ms"]}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _sentences(data: dict[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {number or 'missing'}" for name, number in data["versions"].items())
    kernels = (
        f"{data['kernels']}, with instructions of the set {data['instructions']}" if data["kernels"] else "missing"
    )
    found = [
        ("machine", f"{data['machine']}, {data['processor']}, {data['threads']} threads"),
        ("kernels", kernels),
        ("GPU", data["gpu"] or "none that torch can use"),
        ("C++ compiler", "found" if data["compiler"] else "missing"),
        ("versions", versions),
        ("measured times", data["cache"]),
        ("interpreter", sys.executable),
    ]
    if "speed" in data:
        speed = data["speed"]
        what = f"a training step of one layer, {WIDTH} x {WIDTH}, {BATCH} rows, fwd=0.9, bwd=0.8"
        found.append(
            (
                "speed",
                f"{what}: sparse {speed['sparse_ms']:.2f} ms, dense {speed['dense_ms']:.2f} ms, ratio "
                f"{speed['ratio']:.2f} (below 1: sparse is faster)",
            )
        )
    found += [("missing", sentence) for sentence in data["missing"]]
    found += [("missing, for some functions", sentence) for sentence in data["missing_extras"]]
    return found if data["missing"] else [*found, ("result", "training has all that it needs")]
