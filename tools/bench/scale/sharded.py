"""FSDP2 on 2 and 4 gloo processes: distance from one process, beside plain FSDP2's.

The error is the largest difference of a weight from the same training in one process on all batches together. Its
budget is twice the same distance of the dense model under plain FSDP2. Adam divides a gradient by its own size, so a
gradient near Adam's eps turns any rounding into a step: AdamW stands here with its default eps of 1e-8, and with 1e-5.
In bf16 two weights can be so near to each other that one process keeps the first and several keep the second; the error
is therefore also given for the entries that are in the same sets.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import topkast
from topkast.runtime.state.model import sites
from topkast.tests.support.processes.sharded import OPTIMIZERS, REFRESH, Net, Run, batches, mesh_of, on_ranks
from topkast.tools.common.results import CONSOLE

LOW = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
RESERVOIRS = ("device", "host", "disk")


@dataclass(frozen=True)
class Case:
    """One way to train.

    Args:
        optimizer: a name in ``OPTIMIZERS``.
        block, balanced, reservoir: options of ``topkast.sparsify``.
        bf16: whether products are in bfloat16, with values and sums of gradients in float32.
    """

    optimizer: str
    block: int
    balanced: bool
    reservoir: str
    bf16: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train every case on 1, 2 and 4 processes."""
    cases, counts = _cases(), [2, 4]
    if args.quick:
        cases, counts = cases[::7], [2]
    exact = _exactness(cases, counts)
    CONSOLE.print(_exact_table(exact))
    return {"exactness": exact}


def _cases() -> list[Case]:
    ways = itertools.product(("sgd", "adamw", "adamw, eps 1e-5"), (1, 16), (True, False), (False, True))
    # Every place of the reservoir with every optimizer, block and policy, not with every combination of these.
    return [
        Case(optimizer, block, balanced, RESERVOIRS[number % 3], bf16)
        for number, (optimizer, block, balanced, bf16) in enumerate(ways)
    ]


def spawned(ranks: int, work: Any, *args: Any) -> list[Any]:
    """The results of ``work(*args)`` on new processes, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        return on_ranks(ranks, Path(folder), work, *args)


def _options(case: Case) -> dict[str, Any]:
    density = {"fwd": 0.8, "bwd": 0.6} if case.block == 1 else {"fwd": 0.5, "bwd": 0.25}  # a weight has few blocks
    given = {"block": (case.block, case.block), "balanced": case.balanced, "reservoir": case.reservoir}
    return {**density, **given, "refresh_every": REFRESH, "min_size": 1, "seed": 3}


def shard(model: Any, bf16: bool, mesh: Any) -> None:
    """Call ``fully_shard`` on each block and on the model; arguments as in :class:`Case`."""
    policy = LOW if bf16 else MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def train_cases(cases: list[Case]) -> list[dict[str, Any]]:
    """On each rank: the weights that each case ends with, of the dense and of the sparse model, and the sets."""
    rank, ranks, mesh, found = dist.get_rank(), dist.get_world_size(), mesh_of(Run()), []
    for case in cases:
        ends: dict[str, Any] = {}
        for kind in ("dense", "sparse"):
            torch.manual_seed(0)
            model: Any = Net()
            if kind == "sparse":
                topkast.sparsify(model, **_options(case), mesh=mesh)
            shard(model, case.bf16, mesh)
            optimizer = OPTIMIZERS[case.optimizer](model.parameters())
            for x, y in batches():
                optimizer.zero_grad()
                F.mse_loss(model(x[rank::ranks].float()).float(), y[rank::ranks].float()).backward()
                optimizer.step()
            if kind == "dense":
                ends[kind] = {name: p.full_tensor().detach() for name, p in model.named_parameters()}
            else:
                ends[kind] = topkast.dense_state_dict(model, values="all", full=True)
                ends["sets"] = topkast.masks(model)
                ends["refreshes"] = min(len(site.churn) for site in sites(model).values())
                ends["empty"] = sum(not site.own_columns.numel() for site in sites(model).values())
        found.append(ends)
    return found


def _largest(one: dict[str, Tensor], other: dict[str, Tensor], where: dict[str, Tensor] | None = None) -> float:
    """The largest difference of a weight; ``where``: only of these entries of a sparse weight."""
    differences = {name: (one[name] - other[name]).abs() for name in other}
    for name, entries in (where or {}).items():
        differences[name] = differences[name].where(entries, 0.0)
    return max(float(difference.max()) for difference in differences.values())


def _in_equal_sets(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Tensor]:
    """The entries that are in the same sets in both."""
    return {name: (pair[0] == other[name][0]) & (pair[1] == other[name][1]) for name, pair in one.items()}


def _exactness(cases: list[Case], counts: list[int]) -> list[dict[str, Any]]:
    found = []
    alone = spawned(1, train_cases, cases)[0]
    for ranks in counts:
        ends = spawned(ranks, train_cases, cases)
        for number, case in enumerate(cases):
            one, several = alone[number], [rank[number] for rank in ends]
            error, plain = (_largest(several[0][kind], one[kind]) for kind in ("sparse", "dense"))
            alike = _in_equal_sets(several[0]["sets"], one["sets"])
            pairs = [pair for rank in several for pair in zip(rank["sets"].values(), one["sets"].values(), strict=True)]
            found.append(
                asdict(case)
                | {"ranks": ranks, "error": error, "budget": 2 * plain, "refreshes": several[0]["refreshes"]}
                | {"error in equal sets": _largest(several[0]["sparse"], one["sparse"], alike)}
                | {
                    "sets equal": all(
                        torch.equal(mine, its)
                        for rank in several
                        for name, pair in rank["sets"].items()
                        for mine, its in zip(pair, several[0]["sets"][name], strict=True)
                    ),
                    "other than one process": sum(
                        int((mine != its).sum()) for got, want in pairs for mine, its in zip(got, want, strict=True)
                    ),
                    "empty parts": max(rank["empty"] for rank in several),
                }
            )
    return found


def share_of_budget(row: dict[str, Any], what: str) -> str:
    """An error of a row, as a share of the row's budget."""
    return f"{row[what] / row['budget'] if row['budget'] else float(row[what] > 0):.2f}"


def _exact_table(found: list[dict[str, Any]]) -> Table:
    table = Table(title="distance from one process")
    for heading in ("ranks", "optimizer", "block", "balanced", "reservoir", "products", "error", "of its budget",
                    "in equal sets", "sets equal on all ranks", "unlike one process", "refreshes"):  # fmt: skip
        table.add_column(heading)
    for row in found:
        shares = [share_of_budget(row, what) for what in ("error", "error in equal sets")]
        table.add_row(
            str(row["ranks"]), row["optimizer"], f"{row['block']}x{row['block']}", "yes" if row["balanced"] else "no",
            row["reservoir"], "bf16" if row["bf16"] else "fp32", f"{row['error']:.1e}", *shares,
            "yes" if row["sets equal"] else "NO", str(row["other than one process"]), str(row["refreshes"]),
        )  # fmt: skip
    return table
