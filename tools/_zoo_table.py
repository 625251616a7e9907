"""The records as a table of suites, in Markdown, and what did not work, by cause."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _results import CONSOLE
from _zoo_run import read

Record = dict[str, Any]
REFUSED = "refused"  # begins what is said of a model in which there is nothing to make sparse
HEADINGS = (
    "suite",
    "models",
    "nothing to make sparse",
    "compile",
    "equal the oracle",
    "no more graph breaks",
    "FLOPs fused, forward",
    "backward",
    "copies and state dicts",
    "ONNX with parity",
    "compile time / plain",
)


def show(path: Path) -> None:
    """Print both."""
    records = list(read(path).values())
    CONSOLE.print(table(records), markup=False, highlight=False, soft_wrap=True)
    CONSOLE.print(failures(records), markup=False, highlight=False, soft_wrap=True)


def table(records: list[Record]) -> str:
    """One row a suite; counts are of models in which something can be sparse, shares and times are medians."""
    suites: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.get("model") == "ok":
            suites[record["suite"]].append(record)
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(_row(name, suites[name]) for name in suites)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, records: list[Record]) -> tuple[str, ...]:
    tried = [record for record in records if not refused(record)]

    def count(good: Callable[[Record], bool]) -> str:
        return f"{sum(map(good, tried))} of {len(tried)}"

    return (
        name,
        str(len(records)),
        str(len(records) - len(tried)),
        count(lambda r: r.get("compile") == "ok"),
        count(lambda r: r.get("oracle") == "ok"),
        count(lambda r: more_breaks(r) is False),
        _median([r["share"]["forward"] for r in tried if "forward" in r.get("share", {})], "{:.1%}"),
        _median([r["share"]["backward"] for r in tried if "backward" in r.get("share", {})], "{:.1%}"),
        count(lambda r: r.get("copies") == "ok"),
        count(lambda r: r.get("export") == "ok"),
        _median([r["topkast"]["compile"] / r["plain"]["compile"] for r in tried if _timed(r)], "{:.2f}"),
    )


def _timed(record: Record) -> bool:
    return bool(record.get("plain", {}).get("compile")) and "topkast" in record


def _median(values: list[float], form: str) -> str:
    return form.format(statistics.median(values)) if values else "-"


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
        if record.get("model") != "ok":
            causes[f"not counted, the package's own model does not run: {record.get('model', 'killed')}"].append(name)
            continue
        for stage in ("plain compile", "compile", "oracle", "copies", "export"):
            said = record.get(stage)
            if said not in (None, "ok"):
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
