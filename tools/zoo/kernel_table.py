"""The zoo's records of kernels that are not dense ones, as a table of kernels and blocks, in Markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from topkast.tools.common import markdown

from .kernel_sample import BLOCKS, name

Record = dict[str, Any]
HEADINGS = (
    "kernel",
    "block",
    "models",
    "equal the oracle",
    "with further orders of summing",
    "FLOPs by native kernels (median)",
)


def table(records: list[Record], wider: str) -> str:
    """One row a kernel and block and one a kernel; nothing if there are no records.

    Args:
        records: those whose models run and have a weight to make sparse.
        wider: the key of what the eager oracle's error alone would not have allowed.
    """
    if not records:
        return ""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record["kernel"]].append(record)
    rows = []
    for kernel in sorted(found, reverse=True):  # native, then first
        for block in map(name, BLOCKS):
            if part := [record for record in found[kernel] if record.get("block") == block]:
                rows.append(_row(kernel, block, part, wider))
        rows.append(_row(kernel, "all", found[kernel], wider))
    return markdown.table(HEADINGS, rows)


def _row(kernel: str, block: str, records: list[Record], wider: str) -> tuple[str, ...]:
    left = [record for record in records if "oracle" not in record.get("not ours", {})]
    theirs, equal = len(records) - len(left), [record for record in left if record.get("oracle") == "ok"]
    shares = [by.get("native", 0.0) for record in equal if (by := record.get("kernels"))]
    return (
        kernel,
        block,
        str(len(records)),
        f"{len(equal)} of {len(left)}" + f" ({theirs} not ours)" * bool(theirs),
        str(sum(wider in record for record in equal)),
        f"{statistics.median(shares):.1%}" if shares else "-",
    )
