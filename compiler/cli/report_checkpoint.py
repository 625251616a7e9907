"""The command ``topkast report``: show what a checkpoint holds. The model's code is not needed."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from rich.table import Table

from topkast.compiler.checkpoint.file import read_summary
from topkast.runtime.errors import CheckpointError

from .answer import Answer, cell

NAME = "report"
HELP = "print the sparse weights, the options and the size of a checkpoint that topkast.save wrote"
EXAMPLES = ("topkast report checkpoint.safetensors", "topkast report checkpoint.safetensors --json")
HEADS = ("weight", "shape", "block", "in A", "in B", "changed in A", "changed in B")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument("checkpoint", type=Path, help="a file that topkast.save wrote")


def answer(args: argparse.Namespace) -> Answer:
    """One row for each sparse weight, the options that are not defaults, and a summary."""
    summary = read_summary(args.checkpoint)
    try:
        weights = [_weight(name, site) for name, site in summary["sites"].items()]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"{args.checkpoint}: the header's entry of a sparse weight is damaged") from error
    table = Table(title=cell(f"step {summary['step']}, written by topkast {summary['topkast_version']}"))
    for head in HEADS:
        table.add_column(head, justify="left" if head in ("weight", "shape", "block") else "right", overflow="fold")
    for weight in weights:
        churn = ["" if weight[key] is None else f"{weight[key]:.1%}" for key in ("churn_a", "churn_b")]
        shares = [f"{weight[key]:.1%}" for key in ("density_a", "density_b")]
        sizes = (" x ".join(map(str, weight["shape"])), " x ".join(map(str, weight["block"])))
        table.add_row(*map(cell, (weight["name"], *sizes, *shares, *churn)))
    data = {**{key: value for key, value in summary.items() if key != "sites"}, "weights": weights}
    return Answer(data, [table, _sentences(args.checkpoint, data)])


def _weight(name: str, site: dict[str, Any]) -> dict[str, Any]:
    shape, block = [int(side) for side in site["shape"]], [int(side) for side in site["block"]]
    units = math.prod(shape) // math.prod(block)
    last = site["churn"][-1] if site["churn"] else (None, None, None)
    return {
        "name": name,
        "shape": shape,
        "block": block,
        "density_a": int(site["n_fwd"]) / units,
        "density_b": int(site["n_bwd"]) / units,
        "churn_a": None if last[1] is None else float(last[1]),
        "churn_b": None if last[2] is None else float(last[2]),
    }


def _sentences(path: Path, data: dict[str, Any]) -> str:
    options = ", ".join(f"{name}={value!r}" for name, value in data["options"].items())
    return "\n".join(
        (
            f"options, without those that are the default: {options}",
            f"optimizer: {data['optimizer'] or 'none in the file'}",
            f"{path}: {data['file_bytes']:,} bytes, {data['tensors']} tensors",
            "changed: the share of new members at the last refresh",
        )
    )
