"""The command ``topkast inspect model.onnx``: show the contents of a file that ``topkast.export`` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from topkast.runtime.extras import need

from .answer import Answer, cell

NAME = "inspect"
HELP = "print the weights of a file that topkast.export wrote, with their formats and sizes"
EXAMPLES = ("topkast inspect model.onnx", "topkast inspect model.onnx --json > weights.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument("file", type=Path, help="a file that topkast.export wrote")


def answer(args: argparse.Namespace) -> Answer:
    """The record in the file, as a table of weights, a line for each format, a table of dead units and a summary."""
    need("onnx", "topkast inspect")
    record, size = read(args.file)
    try:
        shown: list[Table | str] = [table(record), legend(record)]
        if record.get("shrunk"):
            shown.append(shrunk_table(record))
        return Answer({**record, "file_bytes": size}, [*shown, summary(args.file, record, size)])
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{args.file}: the record that topkast.export wrote is damaged") from error


def read(path: Path) -> tuple[dict[str, Any], int]:
    """(the record in the file's metadata, bytes of the file and of its separate file of weights).

    Raises:
        OSError: the file does not exist.
        ValueError: the file is no ONNX file, or topkast did not write the file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    from topkast.passes.onnx import metadata

    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{path}: No such file, or no regular one")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX file: {error}") from error
    try:
        found = metadata.read({entry.key: entry.value for entry in model.metadata_props})
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the record that topkast.export wrote is damaged") from error
    if found is None:
        raise ValueError(f"{path} was not written by topkast.export: it has no metadata of the key {metadata.KEY!r}")
    beside = path.with_name(f"{path.name}.data")
    return found, path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def table(record: dict[str, Any]) -> Table:
    """One row for each weight."""
    found = Table(title=cell(f"topkast {record['version']}, format {record['format']}, {record['precision']}"))
    for head in (
        "weight",
        "shape",
        "stored",
        "precision",
        "block",
        "density",
        "bytes",
        "of dense",
        "time of dense",
        "why",
    ):
        found.add_column(head, justify="right" if head in ("density", "bytes", "of dense") else "left", overflow="fold")
    found.columns[0].min_width = longest_name(record["sites"])
    for site in record["sites"]:
        values = (
            site["name"],
            " x ".join(map(str, site["shape"])),
            site["format"],
            site.get("precision", record["precision"]),
            " x ".join(map(str, site["block"] or ())),
            f"{site['density']:.1%}",
            f"{site['bytes']:,}",
            f"{site['bytes'] / max(1, site['dense_bytes']):.0%}",
            ", ".join(f"{name} {share:.2f}" for name, share in site.get("times", {}).items()),
            site["why"],
        )
        found.add_row(*map(cell, values))
    return found


def longest_name(weights: list[dict[str, Any]]) -> int:
    """The columns that names take, so that the other columns of a table are broken first; 60 at most."""
    return min(60, max((len(weight["name"]) for weight in weights), default=0))


def legend(record: dict[str, Any]) -> str:
    """One line for each format that the file uses."""
    from topkast.passes.onnx.formats import FORMATS

    used = {site["format"] for site in record["sites"]}
    return "\n".join(f"{name}: {format.sentence}" for name, format in FORMATS.items() if name in used)


def shrunk_table(record: dict[str, Any]) -> Table:
    """One row for each weight with dead units."""
    found = Table(title="dead units: found, and taken out of all tensors they are in")
    for head in ("weight", "units before", "dead rows", "dead columns", "rows out", "columns out", "the others stay"):
        found.add_column(head, justify="left" if head in ("weight", "the others stay") else "right", overflow="fold")
    found.columns[0].min_width = longest_name(record["shrunk"])
    for one in record["shrunk"]:
        counts = [f"{one[key]:,}" for key in ("dead_rows", "dead_columns", "rows", "columns")]
        found.add_row(*map(cell, (one["name"], " x ".join(map(str, one["shape"])), *counts, "; ".join(one["kept"]))))
    return found


def summary(path: Path, record: dict[str, Any], size: int) -> str:
    """The file's size compared with dense, and the result of the comparison with PyTorch."""
    saved = sum(site["dense_bytes"] - site["bytes"] for site in record["sites"])
    error = record["max_error"]
    parity = "not compared with PyTorch" if error is None else f"largest difference from PyTorch {error:.2e}"
    if record.get("int8_error") is not None:
        parity += f" in float32, int8 changes the outputs by {record['int8_error']:.2%}"
    return f"{path}: {size:,} bytes, {size / (size + saved):.0%} of the {size + saved:,} of a dense file; {parity}"
