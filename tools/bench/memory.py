"""Resident memory of training a 100-million-parameter model: what the system counts, beside what the report counts.

Every way of training has a process of its own, this file run as a program. What counts is anonymous memory: the pages
of a reservoir on disk belong to its file, and the system takes them back when it needs them. On a GPU it is what
tensors take there, by torch's own counters.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import torch
from torch import nn

from topkast.tools.common.arguments import add_device, positive

WAYS = ("dense", "device", "disk")  # all but the first name the reservoir
AIMS = {"device": 0.55, "disk": 0.32, "host": 0.32}
FWD, BWD = 0.9, 0.8
STEPS = 2
CPU = torch.device("cpu")
INTERVAL = 0.002  # seconds between two looks at the peak


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument("--width", type=positive, default=4096, help="of every layer")
    parser.add_argument("--layers", type=positive, default=6, help="square ones: 6 of 4096 are 100 million parameters")


def run(args: argparse.Namespace) -> dict[str, object]:
    from topkast.tools.common.results import CONSOLE, progress

    width, layers = (256, 2) if args.quick else (args.width, args.layers)
    found: dict[str, dict[str, Any]] = {}
    ways = WAYS if args.device.type == "cpu" else ("dense", "device", "host")
    with progress() as bar:
        task = bar.add_task("memory", total=len(ways))
        for way in ways:
            bar.update(task, description=f"memory: {way}")
            found[way] = _child(way, width, layers, args.device)
            bar.update(task, advance=1)
    for way in ways[1:]:
        for what in ("settled", "counted", "peak of steps"):
            found[way][f"{what} / dense"] = found[way][what] / found["dense"][what]
        found[way]["aim"] = AIMS[way]
    CONSOLE.print(_table(found, width * width * layers))
    return {"parameters": layers * width * (width + 1), "fwd": FWD, "bwd": BWD, "ways": found}


def _child(way: str, width: int, layers: int, device: torch.device) -> dict[str, Any]:
    command = [sys.executable, "-m", "topkast.tools.bench.memory", way, str(width), str(layers), device.type]
    # Not to measure kernels: the buffers that compiling does it with would be the peak.
    environment = {**os.environ, "TOPKAST_KERNEL": "first"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"measuring {way} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def _table(found: dict[str, dict[str, Any]], weights: int) -> Any:
    from rich.table import Table

    table = Table(title=f"growth of memory, {weights / 1e6:.0f} million weights at {FWD}/{BWD}, AdamW, MB")
    heads = ("settled", "counted", "settled / counted", "settled / dense", "aim")
    for head in ("", *heads, "peak of steps", "peak of refresh"):
        table.add_column(head, justify="right")
    for way, row in found.items():
        peaks = [f"{row[what] / 1e6:.0f}" if what in row else "" for what in ("peak of steps", "peak of refresh")]
        share = f"{row['settled / dense']:.3f}" if way in AIMS else "1"
        sizes = [f"{row[what] / 1e6:.0f}" for what in ("settled", "counted")]
        aim = f"<= {AIMS[way]}" if way in AIMS else ""
        table.add_row(_name(way), *sizes, f"{row['settled / counted']:.3f}", share, aim, *peaks)
    return table


def _name(way: str) -> str:
    return way if way == "dense" else f"topkast, reservoir: {way}"


def anonymous() -> int:
    """Bytes of this process's resident anonymous memory."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def settled(device: torch.device = CPU) -> int:
    """The same once what is free has gone back to the system; on a GPU what its tensors take."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    return anonymous()


class OnGPU:
    """The most that tensors took on a GPU inside a ``with``."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> OnGPU:
        torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = torch.cuda.max_memory_allocated(self.device)


def peak_on(device: torch.device) -> Peak | OnGPU:
    """What watches the memory that counts on a device."""
    return OnGPU(device) if device.type == "cuda" else Peak()


class Peak:
    """The largest :func:`anonymous` seen inside a ``with``."""

    def __enter__(self) -> Peak:
        self.bytes, self._over = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.is_set():
            self.bytes = max(self.bytes, anonymous())
            time.sleep(INTERVAL)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def build(way: str, width: int, layers: int, device: torch.device) -> nn.Module:
    import topkast

    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*parts[:-1])
    if way == "dense":
        return model.to(device)
    # Not Inductor, whose compilation stays resident; not eager, which keeps a dense W_A of every layer for backward.
    x = torch.zeros(1, width)
    options = {"example_inputs": (x,), "min_size": 1, "reservoir": way, "backend": "aot_eager"}
    return topkast.compile(model, FWD, BWD, **options).to(device)


def train(model: nn.Module, width: int) -> torch.optim.Optimizer:
    """A few steps on one small batch; gradients stay, as they do between backward and step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(8, width, device=next(model.parameters()).device)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return optimizer


def measure(way: str, width: int, layers: int, device: torch.device = CPU) -> dict[str, Any]:
    # A twin with narrow layers first: imports, thread pools and compilation are not the model's.
    train(build(way, 64, layers, device), 64)
    before = settled(device)
    model = build(way, width, layers, device)
    settled(device)  # what building freed is no part of the steps' peak
    with peak_on(device) as steps:
        optimizer = train(model, width)
    after = settled(device)
    found: dict[str, Any] = {"settled": after - before, "peak of steps": steps.bytes - before}
    if way == "dense":
        tensors = [t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values())]
        found["counted"] = sum(tensor.nbytes for tensor in tensors)
    else:
        import topkast

        found["bytes"] = topkast.report(model).totals["bytes"]
        elsewhere = found["bytes"]["sites"]["reservoir"] if way in ("disk", "host") else 0
        found["counted"] = found["bytes"]["model"]["sparse"] - elsewhere
        with peak_on(device) as refresh:
            topkast.refresh(model)
        found["peak of refresh"] = refresh.bytes - before
    found["settled / counted"] = found["settled"] / found["counted"]
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), torch.device(sys.argv[4]))))
