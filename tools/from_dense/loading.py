"""The peak memory of two ways to load a dense checkpoint into a sparse model, each in a process of its own.

Run as a script it is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import topkast

LAYERS, WIDTH = 16, 2048


def stack() -> nn.Module:
    """Linear layers of 16 MiB each in float32."""
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def peaks() -> dict[str, dict[str, float]]:
    """MiB by reservoir and by way: the peak of the process, less what it had after its imports."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_file({f"{i}.weight": torch.randn(WIDTH, WIDTH) for i in range(LAYERS)}, Path(folder) / "model.safetensors")
        return {
            place: {way: _peak(folder, way, place) for way in ("dense first", "from file")}
            for place in ("device", "disk")
        }


def _peak(folder: str, way: str, place: str) -> float:
    command = [sys.executable, "-m", "topkast.tools.from_dense.loading", folder, way, place]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _mebibytes(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak of this program; ``getrusage`` would give the parent's peak too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def main(folder: str, way: str, place: str) -> None:
    topkast.sparsify(nn.Linear(128, 128), fwd=0.9)  # what the first conversion imports
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _mebibytes("VmRSS")
    if way == "dense first":
        model = stack()
        model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        topkast.sparsify(model, fwd=0.9, bwd=0.8, reservoir=place)
    else:
        with torch.device("meta"):
            model = stack()
        topkast.sparsify(model, fwd=0.9, bwd=0.8, reservoir=place, init=folder)
    print(json.dumps(round(_mebibytes("VmHWM") - before, 1)))


if __name__ == "__main__":
    main(*sys.argv[1:])
