"""Count what a refresh asks of a GPU, and estimate its time; writes tools/results/gpu-refresh.json.

    TRITON_INTERPRET=1 python -m topkast.tools.gpu.launches.refreshes

Nothing runs on a GPU. The refresh runs on the CPU, where every operator of PyTorch is counted with the bytes of its
tensors, and our kernels are counted and not run: no size depends on what they would find. A launch takes the time of
its bytes at the rate of the memory, or 2.5 µs: the rates are those of :mod:`topkast.tools.gpu.predicted_times`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import topkast
from topkast.runtime.state.model import sites
from topkast.runtime.triton import products
from topkast.runtime.triton.refresh import sets, theta
from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import CONSOLE, machine, write
from topkast.tools.gpu.predict import MODELS
from topkast.tools.gpu.predicted_times import LAUNCH, MACHINES

BLOCKS = ((1, 1), (128, 128))
WIDTH = 1024  # of the weight whose refresh is counted in both ways
BUS = 50e9  # bytes a second between host memory and a GPU, in each direction; reckoned for PCIe 5
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim")


def reads(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the host waits for the device in an operator: its result is a number, or a tensor whose size depends on
    the content of another."""
    name = func.__name__.split(".")[0]
    chosen = args[1] if name in ("index", "index_put", "index_put_") else []
    by_mask = any(isinstance(one, Tensor) and one.dtype == torch.bool for one in chosen)
    return name in READS or by_mask or (name == "repeat_interleave" and kwargs.get("output_size") is None)


class Counted(TorchDispatchMode):
    """The bytes of every launch, and how often the host reads from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[int] = []
        self.ours = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func.__name__.split(".")[0]
        self.reads += reads(func, args, kwargs or {})
        returns = func._schema.returns
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
        if not view and "empty" not in name and name != "_local_scalar_dense":
            self.launches.append(sum(one.nbytes for one in tree_leaves((args, found)) if isinstance(one, Tensor)))
        return found

    def launch(self, kernel: Any, grid: Any, near: Tensor, *args: Any, **named: Any) -> None:
        """Instead of :func:`topkast.runtime.triton.launching.launch`."""
        self.ours += 1
        self.launches.append(sum(one.nbytes for one in args if isinstance(one, Tensor)))


@contextlib.contextmanager
def _instead(counted: Counted, kernels: bool) -> Iterator[None]:
    """Our kernels are counted; or plain PyTorch does everything, as without this file's kernels and native code."""
    with contextlib.ExitStack() as held:
        held.enter_context(mock.patch.dict(os.environ, {"TOPKAST_KERNEL": "triton" if kernels else "dense"}))
        for module in (products, sets, theta):
            held.enter_context(mock.patch.object(module, "launch", counted.launch))
        if not kernels:
            for name in ("sets", "theta"):
                held.enter_context(mock.patch(f"topkast.runtime.native.{name}.library", lambda: None))
        held.enter_context(counted)
        yield


def refresh(inputs: int, outputs: int, block: tuple[int, int], kernels: bool) -> Counted:
    """A refresh of a float32 weight at 0.9/0.8 with the two moments of AdamW."""
    model = topkast.sparsify(nn.Linear(inputs, outputs, bias=False), 0.9, 0.8, block=block, min_size=1)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for site in sites(model).values():  # other sets than before, so that everything is done
            site.original.mul_(torch.rand_like(site.original))
    counted = Counted()
    with _instead(counted, kernels):
        topkast.refresh(model)
    return counted


def counts() -> list[dict[str, Any]]:
    """One row for each block: launches and reads of one weight by plain PyTorch and by our kernels."""
    rows = []
    for block in BLOCKS:
        row: dict[str, Any] = {"block": "x".join(map(str, block)), "width": WIDTH}
        for name, kernels in (("plain", False), ("kernels", True)):
            found = refresh(WIDTH, WIDTH, block, kernels)
            row[name] = {"launches": len(found.launches), "ours": found.ours, "reads": found.reads}
        rows.append(row)
    return rows


def moved(name: str = "1.3B") -> list[dict[str, Any]]:
    """One row for each block: the bytes of every launch in one layer of a decoder, weight by weight."""
    return [
        {
            "block": "x".join(map(str, block)), "decoder": name,
            "bytes": [refresh(shape.k, shape.n, block, True).launches for shape in MODELS[name].shapes],
        }
        for block in BLOCKS
    ]  # fmt: skip


def estimates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of a refresh of a whole decoder in float32, from the rows of :func:`moved`."""
    found = []
    for row in rows:
        model = MODELS[row["decoder"]]
        largest = max(shape.k * shape.n for shape in model.shapes) / model.weights
        for gpu in MACHINES.values():
            device = model.layers * sum(max(LAUNCH, each / gpu.memory) for one in row["bytes"] for each in one)
            copied = 0.8 * 4 * model.weights / BUS
            # The first weight comes up before any work, and the last one goes back after all work.
            host = max(device, copied) + 2 * largest * copied
            found.append({
                "gpu": gpu.name, "decoder": row["decoder"], "block": row["block"],
                "launches": model.layers * sum(map(len, row["bytes"])), "device ms": round(1e3 * device, 1),
                "host ms": round(1e3 * host, 1),
            })  # fmt: skip
    return found


def markdown(counted: list[dict[str, Any]], estimated: list[dict[str, Any]]) -> tuple[str, str]:
    """The two tables that docs/benchmarks.md shows."""
    first = ["| block | by | launches | of our kernels | reads by the host |", "| --- | --- | --- | --- | --- |"]
    for row in counted:
        for name, by in (("plain", "plain PyTorch"), ("kernels", "our kernels")):
            first.append(f"| {row['block']} | {by} | " + " | ".join(str(value) for value in row[name].values()) + " |")
    second = ["| GPU | decoder | block | launches | reservoir on the device | in host memory |",
              "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    second += [
        f"| {row['gpu']} | {row['decoder']} | {row['block']} | {row['launches']:,} | {row['device ms']:.0f} ms | "
        f"{row['host ms']:.0f} ms |"
        for row in estimated
    ]
    return "\n".join(first), "\n".join(second)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("TRITON_INTERPRET must be 1: the kernels are taken for tensors of the CPU")
    counted, bytes_of = counts(), moved()
    estimated = estimates(bytes_of)
    for table in markdown(counted, estimated):
        CONSOLE.print(table, highlight=False, soft_wrap=True)
    found: dict[str, object] = {"counts": counted, "moved": bytes_of, "estimates": estimated}
    write(args.out / "gpu-refresh.json", machine(), {}, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
