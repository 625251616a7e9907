"""The records as a table of suites, in Markdown, and what did not work, by cause."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from topkast.tools.common import markdown
from topkast.tools.common.results import CONSOLE

from . import kernel_table as _zoo_kernel_table
from .runner import read

Record = dict[str, Any]
REFUSED = "refused"  # begins what is said of a model in which there is nothing to make sparse
HEADINGS = (
    "suite",
    "models",
    "compile",
    "equal the oracle",
    "FLOPs fused, forward, backward (medians)",
    "no more graph breaks",
    "copies, state dicts",
    "ONNX with parity",
)
TIMES = "seconds with Inductor"
WIDER, TIES = "beyond the eager oracle's error", "near-ties decided by rounding"
QUESTIONS = ("compile", "oracle", "copies", "export")


def show(path: Path) -> None:
    """Print table and failures."""
    records = list(read(path).values())
    CONSOLE.print(section(records), markup=False, highlight=False, soft_wrap=True)
    CONSOLE.print(failures(records), markup=False, highlight=False, soft_wrap=True)


def section(records: list[Record]) -> str:
    """The table, how equality was found, the table by kernel, what the times were, and where the records come from."""
    dense = [record for record in records if "kernel" not in record]
    others = [record for record in records if "kernel" in record]
    by_kernel = _zoo_kernel_table.table(list(filter(tried, others)), WIDER)
    parts = (table(dense), settled(dense), by_kernel, times(dense), origin(records))
    return "\n\n".join(filter(None, parts))


def table(records: list[Record]) -> str:
    """One row a suite and one of all. Counts leave out models without a weight to make sparse, shares are medians."""
    suites: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        suites[record["suite"]].append(record)
    rows = [_row(name, suites[name]) for name in suites]
    rows += [_row("all", records)] if len(suites) > 1 else []
    return markdown.table(HEADINGS, rows)


def _row(name: str, records: list[Record]) -> tuple[str, ...]:
    ran = [record for record in records if tried(record)]

    def count(stage: str) -> str:
        left = [record for record in ran if stage not in record.get("not ours", {})]
        theirs = len(ran) - len(left)
        return f"{sum(r.get(stage) == 'ok' for r in left)} of {len(left)}" + f" ({theirs} not ours)" * bool(theirs)

    known = [broken for record in ran if (broken := more_breaks(record)) is not None]
    unknown, left_out = len(ran) - len(known), len(records) - len(ran)
    return (
        name,
        f"{len(ran)}" + f" ({left_out} left out)" * bool(left_out),
        count("compile"),
        count("oracle"),
        f"{_median(ran, 'forward')}, {_median(ran, 'backward')}",
        f"{known.count(False)} of {len(known)}" + f" ({unknown} not known)" * bool(unknown),
        count("copies"),
        count("export"),
    )


def _median(records: list[Record], part: str) -> str:
    values = [record["share"][part] for record in records if part in record.get("share", {})]
    return f"{statistics.median(values):.1%}" if values else "-"


def settled(records: list[Record]) -> str:
    """How many equal the oracle only by the wider budget, or with sets that rounding has decided."""
    equal = [record for record in records if record.get("oracle") == "ok"]
    wider, ties = (sum(what in record for record in equal) for what in (WIDER, TIES))
    if not (wider or ties):
        return ""
    return (
        f"{len(equal)} models equal the oracle. {wider} of them do so within the error of several ways of plain "
        f"PyTorch, not of the eager way alone. In {ties} of them rounding decided a near-tie of two scores, as the "
        "rule says."
    )


def times(records: list[Record]) -> str:
    """What compiling took with Inductor, where it was asked."""
    found = [f"{r['name']} {r[TIMES]['topkast']} s ({r[TIMES]['plain']} s)" for r in records if TIMES in r]
    if not found:
        return ""
    what = "CPU seconds from the dense model to the end of the first backward, with Inductor and empty caches"
    return f"{what} (plain torch.compile's): {', '.join(found)}."


def origin(records: list[Record]) -> str:
    """Which code and which packages the records are of; a warning where they are of several."""
    known = Counter(record.get("versions", {}).get("code", "not recorded") for record in records)
    packages: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, version in record.get("versions", {}).items():
            if name != "code":
                packages[name].add(version)
    dates = sorted(packages.pop("date", ()))
    line = f"{len(records)} records"
    line += f" of {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    line += "".join(f", {name} {' and '.join(sorted(packages[name]))}" for name in sorted(packages))
    if len(known) > 1 or "not recorded" in known:
        states = ", ".join(f"{count} of {code}" for code, count in known.most_common())
        return f"{line}. The records come from several states of the code: {states}."
    return f"{line}, code {next(iter(known), 'none')}."


def tried(record: Record) -> bool:
    """Whether the package's own model runs and there is something in it that could be sparse."""
    return record.get("model") == "ok" and not refused(record)


def refused(record: Record) -> bool:
    """Whether there is nothing in the model that could be sparse, as the message says."""
    return str(record.get("compile", "")).startswith(REFUSED)


def more_breaks(record: Record) -> bool | None:
    """Whether topkast's graphs break more often than plain torch.compile's; None where either is not known."""
    if "plain" not in record or "topkast" not in record:
        return None
    return record["topkast"]["breaks"] > record["plain"]["breaks"]


def failures(records: list[Record]) -> str:
    """What failed, what ran dense and why, the most frequent cause first."""
    causes: dict[str, list[str]] = defaultdict(list)
    for record in records:
        name = f"{record['suite']}/{record['name']}"
        if "kernel" in record:
            name += f" {record['kernel']} {record.get('block', '')}".rstrip()
        if record.get("model") != "ok":
            causes[f"left out, the package's own model does not run: {record.get('model', 'killed')}"].append(name)
            continue
        if refused(record):
            causes[f"left out, nothing in it can be sparse: {record['compile']}"].append(name)
            continue
        theirs = record.get("not ours", {})
        for stage in ("plain compile", *QUESTIONS, "inductor"):
            said = record.get(stage)
            if stage in theirs:
                causes[f"not ours, the dense model fails in the same stage: {stage}: {theirs[stage]}"].append(name)
            elif said not in (None, "ok"):
                causes[f"{stage}: {said}"].append(name)
        if "died" in record:
            causes[f"the process: {record['died']}"].append(name)
        if more_breaks(record):
            causes["more graph breaks than plain torch.compile"].append(name)
        for why in record.get("unfused", {}):
            causes[f"not fused: {why}"].append(name)
    ordered = sorted(causes.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [
        f"- {len(names)}: {cause} ({', '.join(names[:6])}{', ...' * (len(names) > 6)})" for cause, names in ordered
    ]
    return "\n".join(["", "What did not work, or runs dense, and why:", *lines])
