"""The tables of ``scale`` as the pages show them: computed and measured apart."""

from __future__ import annotations

from typing import Any

from topkast.tools.bench.tables import source
from topkast.tools.common.markdown import table
from topkast.tools.common.results import read

SPARSE, HOST, BLOCKS, DIFFER = (
    "sparse",
    "sparse, reservoir in host memory",
    "sparse, blocks of 16 x 16",
    "sparse, rows that differ",
)


def computed() -> str:
    """Bytes on each rank and bytes sent, by model and number of ranks."""
    found = read("scale")
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for row in found["computed"]:
        rows.setdefault((row["model"], row["ranks"]), {})[row["way"]] = row
    lines = []
    for (model, ranks), ways in rows.items():
        dense = ways["dense"]
        held = [f"{ways[way]['device'] / dense['device']:.2f}" for way in (SPARSE, HOST, BLOCKS)]
        sent = [f"{ways[way]['step'] / dense['step']:.2f}" for way in (SPARSE, BLOCKS)]
        block = f"{ways[SPARSE]['gathered block'] / dense['gathered block']:.2f}"
        refresh = f"{ways[DIFFER]['refresh'] / dense['step']:.2f}"
        lines.append(
            [model, f"{ranks:,}", _gb(dense["device"]), *held, block, f"{dense['step'] / 1e9:.0f} GB", *sent, refresh]
        )
    heads = ["model", "GPUs", "held, dense", "sparse", "sparse, reservoir on the host", "sparse, 16x16 blocks"]
    heads += ["a gathered block, sparse", "sent a step, dense", "sparse", "sparse, 16x16 blocks"]
    heads += ["a refresh if rows differ, of a dense step"]
    return f"{table(heads, lines, numbers=True)}\n\n{source(found, 'bench scale')}"


def measured() -> str:
    """Bytes that rank 0 of real processes sent, beside the computation."""
    found = read("scale")
    lines = []
    for row in found["measured"]:
        first = row["each rank"][0]
        sizes = [_kb(first[what]) for what in ("step", "step computed", "refresh", "refresh computed")]
        lines.append([str(row["ranks"]), row["way"], *sizes, f"{first['step'] / first['step computed']:.3f}"])
    heads = ["processes", "way", "a step, measured", "computed", "a refresh, measured", "computed"]
    heads.append("step, measured / computed")
    return f"{table(heads, lines, numbers=True)}\n\n{source(found, 'bench scale')}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _kb(size: float) -> str:
    return f"{size / 1e3:,.0f} kB"
