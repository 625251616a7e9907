"""Show a report as rich tables."""

from __future__ import annotations

import io
import shutil
import sys
from collections import defaultdict
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .facts import Facts

WIDTH = 160


def to_text(report: Facts) -> str:
    """Plain text, as wide as the terminal, or 160 columns if there is no terminal."""
    width = shutil.get_terminal_size((WIDTH, 0)).columns if sys.stdout.isatty() else WIDTH
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


def render(report: Facts) -> Group:
    """Tables of the sites, the dense parameters by reason, the totals and the warnings."""
    parts: list[Any] = [_sites(report), *_scaled(report)]
    if report.dense:
        parts.append(_dense(report))
    parts.append(_totals(report))
    if report.passes:
        parts.append(_passes(report))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in report.warnings]
    return Group(*parts)


def _passes(report: Facts) -> Table:
    table = Table(title="graph passes over what was compiled of this model", title_justify="left")
    for heading in ("pass", "runs", "seconds", "rewritten", "refused"):
        table.add_column(heading, justify="right" if heading in ("runs", "seconds") else "left")
    for name, total in report.passes.items():
        counts = (", ".join(f"{what} {n}" for what, n in total[kind].items()) for kind in ("matches", "refusals"))
        table.add_row(name, str(total["runs"]), f"{total['seconds']:.3f}", *map(Text, counts))
    return table


def _sites(report: Facts) -> Table:
    table = Table(
        title=f"sparse weights (method: {report.config['method']}; traced: {report.how}; backend: {report.backend})",
        title_justify="left",
    )
    for heading in ("weight", "shape", "ops", "A", "B", "block", "new in A, B", "ever", "what ran"):
        table.add_column(heading, justify="right" if heading in ("A", "B", "ever") else "left")
    for row in report.sites:
        ties = len(row["owners"]) - 1
        last = row["churn"][-1] if row["churn"] else None
        table.add_row(
            Text(row["name"] + (f" (+{ties} tied)" if ties else "")),
            "×".join(map(str, row["shape"])),
            Text(", ".join(row["ops"])),
            f"{row['density_a']:.1%}",
            f"{row['density_b']:.1%}",
            "×".join(map(str, row["block"])) + (" balanced" if row["balanced"] else ""),
            f"{last['new_a']:.1%}, {last['new_b']:.1%}" if last else "-",
            f"{row['ever_active']:.1%}",
            Text(_ran(row)),
        )
    return table


def _scaled(report: Facts) -> list[Text]:
    """One line about the scaling of θ at the start; no line if nothing was scaled."""
    factors = [row["scaled"] for row in report.sites if row["scaled"] != 1]
    if not factors:
        return []
    low, high = f"{min(factors):.2f}", f"{max(factors):.2f}"
    by = low if low == high else f"{low} to {high}"
    which = " that look as they were drawn" if report.config["initial"] == "auto" else ""
    text = f"initial={report.config['initial']!r}: {len(factors)} weights{which} were multiplied by {by} at the start"
    return [Text(f"{text}; initial=None leaves them as they are")]


def _ran(row: dict[str, Any]) -> str:
    """The kernels of the fused products; if a dense weight was read instead, the reasons."""
    kernels: dict[str, list[str]] = defaultdict(list)
    for product, ran in row["fused"].items():
        for kernel in ran:
            kernels[kernel].append(product)
    lines = [f"{kernel}: {', '.join(products)}" for kernel, products in kernels.items()]
    reasons: dict[str, list[str]] = defaultdict(list)
    for entry in row["unfused"]:
        reasons[entry["why"]].append(f"{entry['product']} {entry['runs']}×")
    lines += [f"not fused ({why}): {', '.join(runs)}" for why, runs in reasons.items()]
    lines += [_measured(entry) for entry in row["measured"]]
    return "\n".join(lines) or "not run yet"


def _measured(entry: dict[str, Any]) -> str:
    """A line for a measurement, for example: spmm of 256×512: dense is faster here, 0.90 ms against 1.10 (native)."""
    first, *others = sorted(entry["seconds"].items(), key=lambda item: item[1])
    against = ", ".join(f"{1e3 * seconds:.3g} ({name})" for name, seconds in others)
    what = f"{entry['product']} of {'×'.join(map(str, entry['shape']))}"
    return f"{what}: {first[0]} is faster here, {1e3 * first[1]:.3g} ms against {against}"


def _dense(report: Facts) -> Table:
    table = Table(title="dense parameters", title_justify="left")
    for heading in ("reason", "count", "names"):
        table.add_column(heading)
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, why in report.dense.items():
        reasons[why].append(name)
    for why, names in reasons.items():
        shown = ", ".join(names[:4]) + (f", … {len(names) - 4} more" if len(names) > 4 else "")
        table.add_row(Text(why), str(len(names)), Text(shown))
    return table


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _share(sparse: float, dense: float) -> str:
    return f"{sparse / dense:.1%}" if dense else "-"


def _totals(report: Facts) -> Table:
    totals = report.totals
    parameters, flops = totals["parameters"], totals["flops"]
    own, model = totals["bytes"]["sites"], totals["bytes"]["model"]
    table = Table(title=f"totals after step {totals['step']}", title_justify="left")
    for heading in ("", "now", "dense", "share"):
        table.add_column(heading, justify="left" if not heading else "right")

    def line(what: str, sparse: float, dense: float, form: Any) -> None:
        table.add_row(what, form(sparse), form(dense), _share(sparse, dense))

    line("trainable parameters", parameters["trainable_now"], parameters["all"], lambda n: f"{n:,}")
    per = f"weight FLOPs per {flops['per']}, sparse weights only"
    line(f"{per}: forward", flops["sparse_forward"], flops["dense_forward"], _count)
    line(f"{per}: training step", flops["sparse_training"], flops["dense_training"], _count)
    parts = ", ".join(f"{key} {_size(own[key])}" for key in ("values", "gradient", "optimizer", "index", "reservoir"))
    line(f"bytes of sparse weights ({parts})", own["sparse"], own["dense"], _size)
    seen = "" if model["optimizer_seen"] else "; no optimizer step seen yet"
    line(f"bytes of the whole model{seen}", model["sparse"], model["dense"], _size)
    places = totals["bytes"]["places"]
    where = [f"{place} {_size(size)}" for place, size in places["now"].items()]
    peaks = [f"peak of all tensors on {place} {_size(size)}" for place, size in places["peak"].items()]
    table.add_row("where the sparse weights' bytes lie", ", ".join([*where, *peaks]), "", "")
    table.add_row("weights ever in A", f"{totals['ever_active']:.1%}", "", "")
    if totals["churn"]:
        text = f"{totals['churn']['new_a']:.1%}, {totals['churn']['new_b']:.1%}"
        table.add_row("new in A, in B at the last refresh (mean)", text, "", "")
    return table
