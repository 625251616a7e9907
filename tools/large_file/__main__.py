"""Export a tower of linear layers whose file is larger than 2 GB, and use the file in every way that topkast offers.

    python -m topkast.tools.large_file FOLDER [--format custom] [--gigabytes 2.2] [--sparsity 0.02]

The tower is hardly sparse, so that the file is large but the machine need not be: each format takes about six times the
size of the weights as memory. FOLDER is on a disk with room for the file, which is removed at the end.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

import topkast
from topkast.passes.onnx.formats import FORMATS

WIDTH = 8192


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print the name, the seconds, and the most memory that this process has had."""
    begin = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name:36} {time.perf_counter() - begin:7.1f} s   peak {peak:5.1f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m topkast.tools.large_file", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=list(FORMATS), default="custom")
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--sparsity", type=float, default=0.02)
    parser.add_argument("--block", type=int, nargs=2, default=(16, 16))
    args = parser.parse_args()
    path = args.folder / "tower.onnx"
    layers = round(args.gigabytes * 1e9 / (4 * WIDTH * WIDTH))
    torch.manual_seed(0)
    with step(f"{layers} layers of {WIDTH} x {WIDTH}"):
        model: nn.Module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        topkast.sparsify(model, fwd=args.sparsity, bwd=args.sparsity, block=tuple(args.block), initial=None)
    x = torch.randn(2, WIDTH)
    try:
        with step("export"):
            result = topkast.export(model, path, (x,), format=args.format)
        print(result)
        sizes = {file.name: file.stat().st_size for file in args.folder.glob("tower.onnx*")}
        print(sizes)
        assert sum(sizes.values()) == result.bytes
        assert sizes["tower.onnx"] < 2**31
        if result.bytes > 2e9:
            assert "tower.onnx.data" in sizes, "the weights lie beside the graph"
        with torch.no_grad():
            wanted = model(x).numpy()
        del model
        with step("topkast inspect"):
            subprocess.run([sys.executable, "-m", "topkast.compiler.cli", "inspect", str(path)], check=True)
        for name in ("ONNX Runtime", "ONNX Runtime with the library"):
            with step(name):
                if name.endswith("library"):
                    session = topkast.onnx.session(path)
                else:
                    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
                (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
                error = np.abs(y - wanted).max() / np.abs(wanted).max()
                print(f"largest difference from PyTorch, of the largest value: {error:.1e}")
                assert error < 1e-4
                del session
    finally:
        for file in args.folder.glob("tower.onnx*"):
            file.unlink()


if __name__ == "__main__":
    main()
