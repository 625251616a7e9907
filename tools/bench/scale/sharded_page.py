"""The table of ``sharded`` as the page of benchmarks shows it: distance from one process."""

from __future__ import annotations

from typing import Any

from topkast.tools.bench.tables import source
from topkast.tools.common.markdown import table
from topkast.tools.common.results import read

from .sharded import share_of_budget

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
