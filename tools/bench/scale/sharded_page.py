"""The tables of sharded training as the pages show them: distance from one process, bytes, and five kills."""

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


def traffic() -> str:
    """What rank 0 sends in a step and holds, as shares of dense FSDP2's."""
    found = read("traffic")
    lines = []
    for row in found["rows"]:
        mine, dense = row["sparse"], row["dense"]
        held, reservoir = (mine["places"][place] / dense["places"]["training device"] for place in mine["places"])
        device, host = (held, reservoir) if "host" in row["way"] else (held + reservoir, 0.0)
        shares = [mine["step"] / dense["step"], device, host, mine["resident"] / dense["resident"]]
        sent = f"{mine['step'] / 1e6:.1f} MB"
        refresh = f"{mine['refresh'] / 1e6:.1f} MB"
        products = "bf16" if row["bf16"] else "fp32"
        lines.append([str(row["ranks"]), row["way"], products, sent, *(f"{share:.3f}" for share in shares), refresh])
    heads = ["processes", "way", "products", "sent in a step", "of dense", "held on the training device, of dense"]
    heads += ["in host memory, of dense", "resident memory, of dense", "more in a refresh"]
    return f"{table(heads, lines, numbers=True)}\n\n{source(found, 'bench traffic')}"


def kills() -> str:
    """Every start of a run whose ranks were killed, and the weights at its end."""
    found = read("kills")
    lines = []
    for number, row in enumerate(found["starts"]):
        begins = f"after step {row['continued after step']}" if number else "new"
        end = f"rank {row['killed rank']} is killed {row['when']}" if "when" in row else "the last step"
        lines.append([str(number + 1), begins, end])
    one, other = found["undisturbed"], found["after the kills"]
    verdict = "the same bits" if one == other else "OTHER bits"
    facts = f"Hash of the weights at the end: `{one}` undisturbed, `{other}` after the kills: {verdict}."
    date = found["machine"]["date"][:10]
    command = f"`python tools/examples/fsdp/kills.py --out tools/results/kills.json`, {date}."
    return f"{table(['start', 'from', 'until'], lines)}\n\n{facts}\n\n{command}"


def _worst(rows: list[Row], what: str) -> str:
    return max((share_of_budget(row, what) for row in rows), key=float)
