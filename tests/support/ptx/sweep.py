"""Every CUDA kernel x block x dtype x awkward shape in the emulator, against float64. A process of its own runs this,
as Triton's interpreter cannot be switched off where it is on.

    TRITON_INTERPRET=0 python -m topkast.tests.support.ptx.sweep 90 --blocks 16x16 128x128 --dtypes bfloat16
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from topkast.runtime.kernels import explored
from topkast.runtime.layout import Geometry, Index, build_index, explored_values
from topkast.runtime.triton import products, scaling
from topkast.tests.support.truth.product_layouts import check, sets
from topkast.tools.gpu.compiled import facts

from . import Fault
from .driver import Emulator, emulated

BLOCKS = ("16x16", "32x32", "64x64", "128x128", "48x16", "16x80", "32x128", "112x32")
DTYPES = ("bfloat16", "float16", "float32")
# Rows of activations, strides, whether the blocks divide the matrix.
CASES = ((1, "plain", True), (37, "cut", False), (64, "plain", True), (130, "transposed", False), (300, "plain", True))
# What each fault replaces in the compiled code, by what, and which of them in the loop; 0: everywhere.
FAULTS = {
    "no first barrier": ("bar.sync \t0;", "", 1),
    "no second barrier": ("bar.sync \t0;", "", 2),
    "copies are not waited for": ("cp.async.wait_group \t2;", "cp.async.wait_group \t6;", 0),
    "products are not waited for": ("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 4;", 0),
}


def one(block: str, dtype: str, case: tuple[int, str, bool], gpu: Emulator) -> None:
    """The three products on one weight; raises where one is wrong."""
    rows, columns = map(int, block.split("x"))
    m, how, whole = case
    torch.manual_seed(2 * m + 1)
    cut = (0, 0) if whole else (5, 3)
    single = block == "1x1"
    shape = (53, 41) if single else (3 * rows - cut[0], 3 * columns - cut[1])
    geometry, kernel = Geometry(shape, (0, 1), 1, (rows, columns)), "csr" if single else "triton"
    index = sets(geometry, 0.5, 0.7, 2, wide=how == "cut")
    check(m, geometry, index, getattr(torch, dtype), how, how != "cut", kernel)
    score = torch.rand(geometry.grid)
    score[:, 0], score[:, 1] = 0.4, 0.6  # a block of A and an explored block in every row
    decays(geometry, build_index(score < 0.5, score < 0.7, int((score < 0.7).sum()) + 2), getattr(torch, dtype), gpu)


def decays(geometry: Geometry, index: Index, dtype: torch.dtype, gpu: Emulator) -> None:
    """The decay of two weights in one launch, bit for bit as plain PyTorch scales one after the other."""
    values = [torch.randn(index.cols.numel() * geometry.unit).to(dtype) for _ in range(2)]
    expected = []
    for one in values:
        size = explored.square_sum_of_a(one.double(), index, geometry) / (index.row_fwd - index.row_ptr[:-1]).sum()
        factor = 1 - (1e-2 / (size / geometry.unit).sqrt()).clamp(max=0.25)
        expected.append(torch.where(explored_values(index, geometry), one * factor, one))
    gpu.reached = [*values, index.row_ptr, index.row_fwd]
    parts = [(one, index, geometry) for one in values]
    count = int((index.row_fwd - index.row_ptr[:-1]).sum()) * geometry.unit
    scaling.scale_explored(parts, scaling.squares_of_a(parts), [1e-2, 1e-2], [count, count], 0.25, [])
    assert all(map(torch.equal, values, expected)), "decay"


def planted(ptx: str, fault: str) -> str:
    """The code with the fault in it."""
    if not fault:
        return ptx
    old, new, number = FAULTS[fault]
    if not number:
        return ptx.replace(old, new)
    before, label, loop = ptx.partition("$L__BB0_2:")
    parts = loop.split(old)
    return before + label + old.join(parts[:number]) + new + old.join(parts[number:]) if len(parts) > number else ptx


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is stored: what was found, how long it took, and of each kernel what must not change."""
    kernels: dict[str, dict[str, int]] = {}
    for each in row["launches"]:  # the most of all launches of a kernel
        most = kernels.setdefault(each["kernel"], {})
        for name in ("registers", "stack", "shared", "wgmma", "mma"):
            most[name] = max(most.get(name, 0), each[name])
    return {"found": row["found"], "seconds": row["seconds"], "kernels": kernels}


def name_of(row: dict[str, Any]) -> str:
    """The name of a check: GPU, block, dtype, case and fault."""
    rows, how, whole = row["case"]
    parts = [f"sm_{row['gpu']}", row["block"], row["dtype"], f"{rows} rows", how, "whole" if whole else "cut edges"]
    return ", ".join([*parts, *([row["fault"]] if row["fault"] else [])])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", type=int, choices=(80, 90))
    parser.add_argument("--blocks", nargs="+", default=BLOCKS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--cases", nargs="+", type=int, choices=range(len(CASES)), default=range(len(CASES)))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=[""], help="plant these, one after the other")
    parser.add_argument("--out", type=Path, help="a file that gets a row for each check beside the rows it has")
    args = parser.parse_args(argv)
    known = args.out is not None and args.out.exists()
    rows: dict[str, Any] = json.loads(args.out.read_text())["rows"] if known else {}
    warnings.simplefilter("ignore")
    # So that the cases with 130 and 300 rows share sums of the weight gradient.
    with emulated(args.capability) as gpu, mock.patch.object(products, "SPLIT_ROWS", 32):
        for block, dtype, case, fault in itertools.product(args.blocks, args.dtypes, args.cases, args.faults):
            start = time.perf_counter()
            gpu.change = functools.partial(planted, fault=fault)
            row: dict[str, Any] = {"block": block, "dtype": dtype, "case": CASES[case], "found": "right"}
            row["gpu"] = args.capability
            row["fault"] = fault
            gpu.launches.clear()
            try:
                one(block, dtype, CASES[case], gpu)
            except (Fault, AssertionError) as error:
                row["found"] = str(error)
            row["launches"] = [
                {"kernel": each.kernel.name, "programs": each.grid[0], **facts(each.kernel)} for each in gpu.launches
            ]
            row["seconds"] = round(time.perf_counter() - start, 2)
            print(json.dumps(row), flush=True)
            rows[name_of(row)] = short(row)
            if args.out is not None:
                args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
