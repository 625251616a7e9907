"""Fill the table of tile sizes for the GPU of this machine: measure candidates, keep the fastest, write configs.json.

    python -m topkast.tools.gpu.tune                              all products, dtypes, block sides and classes of rows
    python -m topkast.tools.gpu.tune --sides 128 --kinds half     some of them; the rest of the table stays

A candidate that the GPU cannot run, for its registers or its shared memory, is passed over.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from topkast.runtime.triton import configs, products
from topkast.runtime.triton.configs import KINDS, PRODUCTS, ROWS, SIDES, Config
from topkast.tools.bench.layer import Layer, random_layer
from topkast.tools.common.results import CONSOLE

from .timing import seconds

M = {"decode": 16, "small": 256, "large": 8192}
DTYPES = {"half": torch.bfloat16, "single": torch.float32}


def candidates(product: str, rows: str) -> Iterator[Config]:
    """What is tried for a class of rows, the present choice aside."""
    tiles: tuple[int, ...]
    depths: tuple[int, ...]
    groups: tuple[int, ...]
    if product == "sddmm":
        tiles, depths, groups = (64, 128, 256), ((16,) if rows == "decode" else (32, 64, 128)), (1,)
    else:
        tiles = {"decode": (16,), "small": (32, 64, 128), "large": (64, 128, 256)}[rows]
        depths, groups = (32, 64, 128), ((1,) if rows == "decode" else (4, 8, 16))
    for tile, depth, group, warps, stages in itertools.product(tiles, depths, groups, (4, 8), (2, 3, 4, 5)):
        yield Config(tile, depth, group, warps, stages)


def best(
    product: str, kind: str, side: int, rows: str, present: Config, size: int, where: torch.device, repeats: int
) -> tuple[Config, float]:
    """The fastest configuration on a square weight at 0.9/0.8, and its seconds."""
    layer = random_layer((M[rows], size, size), (side, side), 0.9, 0.8, where)
    run = _product(layer.to(DTYPES[kind]), product)
    found: dict[Config, float] = {}
    for candidate in dict.fromkeys([present, *candidates(product, rows)]):
        with _forced(candidate):
            try:
                (times,) = seconds([run], where, repeats)
            except Exception as error:  # Triton's own, of several kinds: it does not fit this GPU
                CONSOLE.print(f"  {candidate}: {type(error).__name__}", style="dim", highlight=False)
                continue
        found[candidate] = statistics.median(times)
    if not found:
        raise RuntimeError(f"{product} {kind} {side} {rows}: no candidate runs")
    chosen = min(found, key=lambda candidate: found[candidate])
    return chosen, found[chosen]


@contextlib.contextmanager
def _forced(chosen: Config) -> Iterator[None]:
    """Every product takes this configuration."""
    held = products.find
    products.find = lambda *_: chosen
    try:
        yield
    finally:
        products.find = held


def _product(layer: Layer, product: str) -> Callable[[], Any]:
    weight = layer.values, layer.index, layer.geometry
    return {
        "spmm": lambda: products.spmm(layer.x, *weight, None),
        "spmm_t": lambda: products.spmm_t(layer.dy, *weight),
        "sddmm": lambda: products.sddmm(layer.dy, layer.x, *weight[1:]),
    }[product]


def dump(table: dict[str, Any]) -> str:
    """JSON with one line for the classes of a block side."""
    innermost = rf'{{\s+"{next(iter(ROWS))}".*?}}'
    deep = json.dumps(table, indent=1)
    return re.sub(innermost, lambda found: json.dumps(json.loads(found[0])), deep, flags=re.DOTALL) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=list(PRODUCTS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sides", nargs="+", type=int, choices=SIDES, default=list(SIDES))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each candidate")
    parser.add_argument("--table", type=Path, default=configs.PATH, help="read, and written anew after each row")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("there is no GPU to measure")
    where = torch.device("cuda")
    table = json.loads(args.table.read_text())
    fill(table, args, where, "sm_{}{}".format(*torch.cuda.get_device_capability()))
    return 0


def fill(table: dict[str, Any], args: argparse.Namespace, where: torch.device, name: str) -> None:
    """Measure what ``args`` names, and write the table after each row.

    Args:
        table: what configs.json holds; changed in place.
        name: of the architecture, such as "sm_90". One that is not in the table starts as a copy of "any".
    """
    mine = table.setdefault(name, json.loads(json.dumps(table["any"])))
    gpu = torch.cuda.get_device_name() if where.type == "cuda" else "none"
    mine["measured"] = f"{gpu}, torch {torch.__version__}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    for product, kind, side, rows in itertools.product(args.products, args.kinds, args.sides, args.rows):
        present = Config(*mine[product][kind][str(side)][rows])
        chosen, taken = best(product, kind, side, rows, present, args.size, where, args.repeats)
        mine[product][kind][str(side)][rows] = list(chosen)
        args.table.write_text(dump(table))
        CONSOLE.print(f"{product} {kind} {side} {rows}: {chosen}, {1e6 * taken:.1f} µs", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
