"""The benchmark ``scale``: bytes on each rank and bytes sent, sparse beside dense FSDP2.

Computed: models of 1.3 to 70 billion parameters on 8 to 1,024 GPUs, on the meta device, from the shapes of all tensors
that ``fully_shard`` leaves on rank 0. One block is made and counted, and the number multiplied by the number of blocks.
Measured: small models on real processes, to check the computation.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from .count import gathered, held, sent_in_a_refresh, sent_in_a_step
from .counted_decoder import SIZES, Size, sharded
from .sent_bytes import measured

RANKS = (8, 64, 256, 1024)
SPARSE = {"fwd": 0.9, "bwd": 0.8}
WAYS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "sparse": SPARSE,
    "sparse, reservoir in host memory": SPARSE | {"reservoir": "host"},
    "sparse, blocks of 16 x 16": SPARSE | {"block": (16, 16)},
    "sparse, rows that differ": SPARSE | {"balanced": False},
}
CHECKED = ("dense", "sparse", "sparse, rows that differ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of real processes to measure")


def computed(size: Size, ranks: int, options: dict[str, Any] | None) -> dict[str, Any]:
    """The bytes of rank 0, for bf16 products, fp32 values and AdamW."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        model = sharded(size, 1, init_device_mesh("cpu", (ranks,)), options, bf16=True, meta=True)
        block: nn.Module = model.blocks[0]
        rows: Counter[str] = Counter(held(model))
        for place, number in held(block).items():
            rows[place] += (size.layers - 1) * number
        places = dict(rows)
        if options is not None and options.get("reservoir") == "host":
            places["host memory"] = places.pop("reservoir")
        return {
            "held": places,
            "device": sum(number for place, number in places.items() if place != "host memory"),
            "gathered block": gathered(block),
            "step": sent_in_a_step(model, ranks) + (size.layers - 1) * sent_in_a_step(block, ranks),
            "refresh": size.layers * sent_in_a_refresh(block, ranks),
        }
    finally:
        dist.destroy_process_group()


def run(args: argparse.Namespace) -> dict[str, object]:
    from topkast.tools.common.results import CONSOLE

    sizes = {"1.3B": SIZES["1.3B"]} if args.quick else SIZES
    large = [
        {"model": name, "ranks": ranks, "way": way, **computed(size, ranks, options)}
        for name, size in sizes.items()
        for ranks in (RANKS[:1] if args.quick else RANKS)
        for way, options in WAYS.items()
    ]
    small = [
        {"ranks": ranks, "way": way, "bf16": False, "each rank": measured(ranks, WAYS[way], bf16=False)}
        for ranks in args.ranks[: 1 if args.quick else None]
        for way in CHECKED
    ]
    CONSOLE.print(computed_table(large))
    CONSOLE.print(measured_table(small))
    return {"computed": large, "measured": small}


def computed_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="computed, GB on each rank: AdamW, bf16 products, fp32 values and gradients; 0.9/0.8")
    places = ("values", "gradient", "optimizer", "index", "reservoir", "host memory")
    for head in ("model", "ranks", "way", *places, "device", "of dense", "block", "sent a step", "of dense", "refresh"):
        table.add_column(head, justify="left" if head == "way" else "right")
    dense: dict[str, Any] = {}
    for row in rows:
        dense = row if row["way"] == "dense" else dense
        numbers = [f"{row['held'].get(place, 0) / 1e9:.2f}" for place in places]
        table.add_row(
            row["model"], f"{row['ranks']:,}", row["way"], *numbers, f"{row['device'] / 1e9:.2f}",
            f"{row['device'] / dense['device']:.2f}", f"{row['gathered block'] / 1e9:.2f}", f"{row['step'] / 1e9:.1f}",
            f"{row['step'] / dense['step']:.2f}", f"{row['refresh'] / 1e9:.1f}",
        )  # fmt: skip
    return table


def measured_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="measured on gloo processes, kB that rank 0 sends, beside what is computed for gloo")
    for head in ("ranks", "way", "a step", "computed", "measured / computed", "a refresh", "computed"):
        table.add_column(head, justify="left" if head == "way" else "right")
    for row in rows:
        first = row["each rank"][0]
        table.add_row(
            str(row["ranks"]), row["way"], f"{first['step'] / 1e3:.1f}", f"{first['step computed'] / 1e3:.1f}",
            f"{first['step'] / first['step computed']:.4f}", f"{first['refresh'] / 1e3:.1f}",
            f"{first['refresh computed'] / 1e3:.1f}",
        )  # fmt: skip
    return table
