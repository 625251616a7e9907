"""Run the tests of the ONNX Runtime library and of exported files on another version of ONNX Runtime.

    python -m topkast.tools.common.old_onnxruntime 1.17.3
    python -m topkast.tools.common.old_onnxruntime gpu-1.31.1

The second is of onnxruntime-gpu, 250 MB, which runs on the CPU where there is no GPU. The version is installed into a
folder of its own, build/onnxruntime/<version>, which Python then sees first; the environment itself stays as it is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from .places import ROOT

TESTS = ("tests/runtime/onnx", "tests/passes/onnx/test_onnx_conv.py", "tests/passes/onnx/test_onnx_formats.py")
BEFORE_NUMPY_2 = (1, 19)  # older ones were built against numpy 1


def install(version: str) -> Path:
    """The folder that holds ONNX Runtime of this version, and the numpy it needs."""
    folder = ROOT / "build" / "onnxruntime" / version
    if not (folder / "onnxruntime").is_dir():
        number = version.removeprefix("gpu-")
        packages = [f"onnxruntime{'-gpu' if number != version else ''}=={number}"]
        if tuple(map(int, number.split(".")[:2])) < BEFORE_NUMPY_2:
            packages.append("numpy<2")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-input", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, *packages], check=True)
    return folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="of onnxruntime, 1.17 or later; with gpu- before it, of onnxruntime-gpu")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for pytest")
    args = parser.parse_args(argv)
    environment = os.environ | {"PYTHONPATH": str(install(args.version)), "OMP_NUM_THREADS": "1"}
    seen = [sys.executable, "-c", "import onnxruntime; print('ONNX Runtime', onnxruntime.__version__)"]
    subprocess.run(seen, env=environment, cwd=ROOT, check=True)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *TESTS, *args.arguments], env=environment, cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
