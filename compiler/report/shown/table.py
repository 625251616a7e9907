"""Everything that a report found, as rich tables, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from topkast.compiler.report.facts import Facts
from topkast.compiler.report.groups import grouped, label
from topkast.compiler.report.numbers import count, share, size

from .plain_text import to_text

WIDTH = 160  # columns of text that is printed to no terminal


class Details:
    """Everything that a report found, layer by layer. ``print`` shows it as tables, as wide as the terminal."""

    def __init__(self, report: Facts) -> None:
        self._report = report

    def __rich__(self) -> Group:
        return tables(self._report)

    def __str__(self) -> str:
        return to_text(self, WIDTH)

    __repr__ = __str__


def tables(report: Facts) -> Group:
    """Tables of the sites, the measurements, the dense parameters by reason, the totals, the passes and the
    warnings."""
    parts: list[Any] = [_sites(report), *_scaled(report)]
    if any(row["measured"] for row in report.sites):
        parts.append(_measurements(report))
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
        table.add_column(heading, justify="right" if heading in ("A", "B", "ever") else "left", overflow="fold")
    longest = max((len(row["name"]) for row in report.sites), default=0)
    table.columns[0].min_width = min(longest, WIDTH // 2)  # the other columns are broken first
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
    return "\n".join(lines) or "not run yet"


def _measurements(report: Facts) -> Table:
    """The measurements for the choice of the kernels, and the layers of the measured shapes."""
    table = Table(title="measured on this machine, for weights like these", title_justify="left")
    table.add_column("measurement", overflow="fold")
    table.add_column("layers", overflow="fold")
    names: dict[str, list[str]] = defaultdict(list)
    for row in report.sites:
        for entry in row["measured"]:
            names[_measured(entry)].append(row["name"])
    for sentence, those in names.items():
        table.add_row(Text(sentence), Text(", ".join(map(label, grouped(dict.fromkeys(those))))))
    return table


def _measured(entry: dict[str, Any]) -> str:
    """A sentence about a measurement, for example: spmm of 256×512: dense is faster here, 0.90 ms against 1.10
    (native)."""
    first, *others = sorted(entry["seconds"].items(), key=lambda item: item[1])
    against = ", ".join(f"{1e3 * seconds:.3g} ({name})" for name, seconds in others)
    what = f"{entry['product']} of {'×'.join(map(str, entry['shape']))}"
    return f"{what}: {first[0]} is faster here, {1e3 * first[1]:.3g} ms against {against}"


def _dense(report: Facts) -> Table:
    table = Table(title="dense parameters", title_justify="left")
    for heading in ("reason", "count", "names"):
        table.add_column(heading, overflow="fold")
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, why in report.dense.items():
        reasons[why].append(name)
    for why, names in reasons.items():
        table.add_row(Text(why), str(len(names)), Text(", ".join(names)))
    return table


def _totals(report: Facts) -> Table:
    totals = report.totals
    parameters, flops = totals["parameters"], totals["flops"]
    own, model = totals["bytes"]["sites"], totals["bytes"]["model"]
    table = Table(title=f"totals after step {totals['step']}", title_justify="left")
    for heading in ("", "now", "dense", "share"):
        table.add_column(heading, justify="left" if not heading else "right")

    def line(what: str, sparse: float, dense: float, form: Any) -> None:
        table.add_row(what, form(sparse), form(dense), share(sparse, dense))

    line("trainable parameters", parameters["trainable_now"], parameters["all"], lambda n: f"{n:,}")
    per = f"weight FLOPs per {flops['per']}, sparse weights only"
    line(f"{per}: forward", flops["sparse_forward"], flops["dense_forward"], count)
    line(f"{per}: training step", flops["sparse_training"], flops["dense_training"], count)
    parts = ", ".join(f"{key} {size(own[key])}" for key in ("values", "gradient", "optimizer", "index", "reservoir"))
    ranks, here = totals["bytes"]["ranks"], " on this rank" if totals["bytes"]["ranks"] else ""
    line(f"bytes of sparse weights{here} ({parts})", own["sparse"], own["dense"], size)
    if ranks:
        every = f"bytes of sparse weights on all {ranks['number']} ranks"
        line(every, ranks["sites"]["sparse"], ranks["sites"]["dense"], size)
    seen = "" if model["optimizer_seen"] else "; no optimizer step seen yet"
    line(f"bytes of the whole model{here}{seen}", model["sparse"], model["dense"], size)
    places = totals["bytes"]["places"]
    where = [f"{place} {size(n)}" for place, n in places["now"].items()]
    peaks = [f"peak of all tensors on {place} {size(n)}" for place, n in places["peak"].items()]
    table.add_row("where the sparse weights' bytes lie", ", ".join([*where, *peaks]), "", "")
    table.add_row("weights ever in A", f"{totals['ever_active']:.1%}", "", "")
    if totals["churn"]:
        text = f"{totals['churn']['new_a']:.1%}, {totals['churn']['new_b']:.1%}"
        table.add_row("new in A, in B at the last refresh (mean)", text, "", "")
    return table
