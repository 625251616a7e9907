"""FSDP2 on 2 and 4 gloo processes: bytes that a rank holds and sends, sparse beside dense.

The bytes sent are those that the kernel counts of each process's sockets. They do not depend on what else a machine
does; resident memory hardly does.
"""

from __future__ import annotations

import argparse
import itertools
import os
from typing import Any

import torch
import torch.distributed as dist
from rich.table import Table
from torch import nn

import topkast
from topkast.runtime.state.model import sites
from topkast.runtime.state.sharding.compare import VARIABLE
from topkast.tests.support.processes.sharded import Run, mesh_of
from topkast.tools.bench.large import give_back_at_once
from topkast.tools.bench.memory import settled
from topkast.tools.common.results import CONSOLE
from topkast.tools.common.transport import bytes_sent

from .sharded import shard, spawned

STEPS = 3  # the first one makes optimizer state and is not counted, the last one refreshes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=1024, help="of the layers whose bytes are counted")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Count bytes on 2 and 4 processes."""
    counts = [2] if args.quick else [2, 4]
    found = _counted(counts, 64 if args.quick else args.width, args.quick)
    CONSOLE.print(_table(found))
    return {"rows": found}


def count_traffic(width: int, options: dict[str, Any] | None, bf16: bool) -> dict[str, Any]:
    """On each rank: the bytes sent in a step and in a refresh, and the bytes held.

    Args:
        width: of the model.
        options: of ``topkast.sparsify``; None: a dense model.
        bf16: as in :class:`topkast.tools.bench.scale.sharded.Case`.
    """
    os.environ.pop(VARIABLE)  # a comparison of the ranks at each refresh is for tests
    give_back_at_once()
    mesh, before = mesh_of(Run()), settled()
    torch.manual_seed(0)
    model: Any = nn.Sequential()
    layers = [nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(2)]
    model.blocks = nn.ModuleList(layers)
    if options is not None:
        topkast.sparsify(model, **options, refresh_every=STEPS, seed=0, mesh=mesh)
    shard(model, bf16, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sent = []
    for _ in range(STEPS):
        dist.barrier()
        start = bytes_sent()
        optimizer.zero_grad()
        model.blocks[1](model.blocks[0](torch.randn(4, width))).float().square().mean().backward()
        optimizer.step()
        sent.append(bytes_sent() - start)
    resident = settled() - before
    held = [p.to_local() for p in model.parameters()]
    states = [v.to_local() for s in optimizer.state.values() for v in s.values() if v.dim()]
    all_held = sum(p.nbytes * (1 + p.requires_grad) for p in held) + sum(v.nbytes for v in states)
    reservoir = sum(site.reservoir.nbytes for site in sites(model).values()) if options is not None else 0
    places = {"training device": all_held, "reservoir": reservoir}
    return {"step": sent[1], "refresh": sent[2] - sent[1], "places": places, "resident": resident}


SPARSE = {"fwd": 0.9, "bwd": 0.8}
TRAFFIC = {
    "1x1": SPARSE,
    "1x1, host": {**SPARSE, "reservoir": "host"},
    "1x1, not balanced": {**SPARSE, "balanced": False},
    "16x16": {**SPARSE, "block": (16, 16)},
}


def _counted(counts: list[int], width: int, quick: bool) -> list[dict[str, Any]]:
    found = []
    for ranks, bf16 in itertools.product(counts, (False, True)):
        dense = spawned(ranks, count_traffic, width, None, bf16)[0]
        for name, options in list(TRAFFIC.items())[: 1 if quick else None]:
            mine = spawned(ranks, count_traffic, width, options, bf16)[0]
            found.append({"ranks": ranks, "way": name, "bf16": bf16, "sparse": mine, "dense": dense})
    return found


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(title="bytes of rank 0, and their share of dense FSDP2's")
    for heading in ("ranks", "way", "products", "sent in a step", "of dense", "more in a refresh",
                    "held on the training device, of dense", "reservoir, of dense", "resident, of dense"):  # fmt: skip
        table.add_column(heading)
    for row in found:
        mine, dense = row["sparse"], row["dense"]
        whole = sum(dense["places"].values())
        table.add_row(
            str(row["ranks"]), row["way"], "bf16" if row["bf16"] else "fp32", f"{mine['step']:,}",
            f"{mine['step'] / dense['step']:.3f}", f"{mine['refresh']:,}",
            *(f"{size / whole:.3f}" for size in mine["places"].values()),
            f"{mine['resident'] / max(1, dense['resident']):.3f}",
        )  # fmt: skip
    return table
