"""The table of a sweep in tools/results/ptx-sweep.json, as docs/internals/tests.md shows it."""

from __future__ import annotations

from typing import Any

from topkast.tools.common.results import read

DTYPES = ("bfloat16", "float16", "float32")


def table(rows: dict[str, Any]) -> str:
    """For each GPU, block and dtype: how many checks were right, which tensor cores dW used, and spilled bytes.

    Args:
        rows: name of a check -> what was found, as ``sweep.py --out`` writes them.
    """
    cells: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for name, row in rows.items():
        gpu, block, dtype, *_ = name.split(", ")
        cells.setdefault((gpu, block), {}).setdefault(dtype, []).append(row)
    lines = [f"| GPU | block | {' | '.join(DTYPES)} |", f"| --- | --- | {' | '.join('---' for _ in DTYPES)} |"]
    for (gpu, block), found in sorted(cells.items()):
        lines.append(f"| {gpu} | {block} | {' | '.join(_cell(found.get(dtype, [])) for dtype in DTYPES)} |")
    return "\n".join(lines)


def _cell(checks: list[dict[str, Any]]) -> str:
    if not checks:
        return "not run"
    right = sum(check["found"] == "right" for check in checks)
    spilled = [each["stack"] for check in checks for each in check["kernels"].values()]
    with_wgmma = sum(check["kernels"].get("sddmm_kernel", {}).get("wgmma", 0) > 0 for check in checks)
    most = max(spilled, default=0)
    return f"{right} of {len(checks)} right, dW with wgmma in {with_wgmma}, at most {most} bytes spilled"


def stored() -> dict[str, Any]:
    """The rows of the stored sweep."""
    found: dict[str, Any] = read("ptx-sweep")["rows"]
    return found
