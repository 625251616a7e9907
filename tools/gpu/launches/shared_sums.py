"""Estimate what programs that share a sum, and wgmma in small blocks, are worth to the weight gradient; writes
tools/results/gpu-shared-sums.json. The cost model is that of :mod:`topkast.tools.gpu.predicted_times`, unchanged.

    TRITON_INTERPRET=0 python -m topkast.tools.gpu.launches.shared_sums

A sum over m rows that s programs share counts as s times as many block rows with m / s rows of activations. So the
parts count as further weights that are filled and cast, which is what writing and adding them costs.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from topkast.runtime.triton import configs, products
from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import CONSOLE, machine, write
from topkast.tools.gpu import compiled
from topkast.tools.gpu.predicted_times import MACHINES, Shape, dense, product

ROWS, BWD, SIDES, WIDTHS = 8192, 0.8, (32, 64, 128), (1024, 2048, 4096)


def estimates(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """dW of a square weight over the dense product, before and after, with the fast and the slow L2.

    Args:
        facts: "before side" and "after side" -> facts of the compiled kernel.
    """
    gpu, rows = MACHINES["H100"], []
    for side in SIDES:
        for width in WIDTHS:
            tile, blocks = facts[f"after {side}"]["tile"], (width // side) ** 2
            row_programs = math.ceil(math.ceil((1 - BWD) * blocks) * side / (width // side * tile))
            splits = products.programs_a_sum(width // side * row_programs, ROWS)

            def over_dense(which: str, parts: int, side: int = side, width: int = width) -> list[float]:
                shape, plain = Shape(ROWS // parts, width, width * parts), dense(Shape(ROWS, width, width), gpu)
                both = (product("sddmm", side, shape, 0.9, BWD, facts[f"{which} {side}"], gpu, cache)
                        for cache in reversed(gpu.cache))  # fmt: skip
                return [round(one / plain, 3) for one in both]

            rows.append({"block": side, "width": width, "programs": width // side * row_programs, "share a sum": splits,
                         "before": over_dense("before", 1), "after": over_dense("after", splits)})  # fmt: skip
    return rows


def compile_both() -> dict[str, Any]:
    """The kernels for bfloat16 and many rows, compiled for sm_90: "before" as a product that is not transposed."""
    found = {}
    for side in SIDES:
        tile, depth, *_ = configs.table()["sm_90"]["sddmm"]["half"][str(side)]["large"]
        for which, swap in (("before", False), ("after", side < products.WGMMA_ROWS)):
            kernel, _ = compiled.product("sddmm", side, "bf16", "large", 90, swap)
            found[f"{which} {side}"] = compiled.facts(kernel) | {"tile": tile, "depth": depth}
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table that docs/benchmarks.md shows."""
    lines = ["| block | weight | programs | share a sum | dW / dense before | after |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in rows:
        spans = ("{:.2f}-{:.2f}".format(*row[key]) for key in ("before", "after"))
        first = f"| {row['block']} | {row['width']}² | {row['programs']} | {row['share a sum']} | "
        lines.append(first + " | ".join(spans) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    found = compile_both()
    rows = estimates(found)
    CONSOLE.print(markdown(rows), highlight=False, soft_wrap=True)
    write(args.out / "gpu-shared-sums.json", machine(), {}, {"compiled": found, "estimates": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
