"""The tables of ``sharded`` as the page of benchmarks shows them: distance from one process, and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from topkast.tools.common.markdown import table
from topkast.tools.common.results import read

from .sharded import share_of_budget
from .tables import source

Row = dict[str, Any]


def exactness() -> str:
    """The worst case of each way, over reservoirs and rows that are balanced or not."""
    found = read("sharded")
    ways: dict[tuple[Any, ...], list[Row]] = {}
    for row in found["exactness"]:
        ways.setdefault((row["ranks"], row["optimizer"], row["block"], row["bf16"]), []).append(row)
    lines = []
    for (ranks, optimizer, block, bf16), rows in ways.items():
        worst, alike = (_worst(rows, what) for what in ("error", "error in equal sets"))
        equal = "yes" if all(row["sets equal"] for row in rows) else "no"
        unlike = max(row["other than one process"] for row in rows)
        products = "bf16" if bf16 else "fp32"
        lines.append([str(ranks), optimizer, f"{block}x{block}", products, worst, alike, equal, str(unlike)])
    heads = ["processes", "optimizer", "block", "products", "largest error / its budget", "in equal sets"]
    heads += ["sets equal on all ranks", "entries of sets unlike one process"]
    return f"{table(heads, lines)}\n\n{source(found, 'bench sharded')}"


def _worst(rows: list[Row], what: str) -> str:
    return max((share_of_budget(row, what) for row in rows), key=float)


def traffic() -> str:
    """Bytes of rank 0, as shares of dense FSDP2's."""
    found = read("sharded")
    shares: list[Callable[[Row, Row], float]] = [
        lambda mine, dense: mine["step"] / dense["step"],
        lambda mine, dense: mine["refresh"] / dense["step"],
        lambda mine, dense: mine["places"]["training device"] / sum(dense["places"].values()),
        lambda mine, dense: mine["places"]["reservoir"] / sum(dense["places"].values()),
        lambda mine, dense: mine["resident"] / dense["resident"],
    ]
    lines = []
    for row in found["traffic"]:
        figures = [f"{share(row['sparse'], row['dense']):.3f}" for share in shares]
        lines.append([str(row["ranks"]), row["way"], "bf16" if row["bf16"] else "fp32", *figures])
    heads = ["processes", "way", "products", "sent in a step", "more in a refresh"]
    heads += ["held on the training device", "reservoir", "resident memory"]
    return f"{table(heads, lines, numbers=True)}\n\n{source(found, 'bench sharded')}"
