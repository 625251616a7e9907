"""Sets that training chose, whose rows are far from equally full, against sets of the same size drawn evenly."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import topkast
from topkast.compiler.checkpoint.pack import read
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.state.model import sites
from topkast.tools.common.pairs import bound, measure, show
from topkast.tools.common.results import CONSOLE, progress

from .layer import Layer, layer_on, measure_layer, random_index

ROWS = 256  # of the activations
SITES = 3

Sets = dict[str, tuple[Index, Geometry]]


def measure_trained_sets(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The largest sites: trained against dense, random against dense, and trained against random, all in pairs."""
    torch.set_num_threads(max(args.threads))
    found = from_checkpoint(args.checkpoint) if args.checkpoint else from_training(args.quick)
    largest = sorted(found, key=lambda name: -found[name][1].numel)[:SITES]
    return [row for name in largest for row in _measure_site(name, *found[name], args)]


def from_training(quick: bool) -> Sets:
    """Train a small GPT-2 on the standard library's sources as the demo does, and take its sets."""
    import topkast.tools.demo.__main__ as demo  # the demo, with all that it needs: only when it is used
    from topkast.tools.common.loop import make_side, train_step
    from topkast.tools.common.text import load_text

    size, steps, backend = ("gpt2-nano", 3, "eager") if quick else ("gpt2-mini", 200, "aot_eager")
    args = demo.arguments(["--model", size, "--steps", str(steps), "--length", "16" if quick else "128"])
    model = demo.build_model(args)
    topkast.compile(model, args.fwd, args.bwd, refresh_every=args.refresh_every, backend=backend)
    side, text = make_side("sparse", model, args), load_text(None, args.length)
    generator = torch.Generator().manual_seed(args.seed)
    with progress() as bar:
        for _ in bar.track(range(steps), description=f"training {size} for its sets"):
            train_step(side, *text.batch(generator, args.batch, args.length))
    CONSOLE.print(f"{size}: {side.training[0]:.2f} -> {side.training[-1]:.2f} bits per byte", highlight=False)
    return {name: (site.index, site.geometry) for name, site in sites(model).items()}


def from_checkpoint(path: Path) -> Sets:
    """The sets in a file of ``topkast.save``, without the model that they belong to."""
    import json

    header, tensors = read(path)
    found = {}
    for name, facts in json.loads(header["sites"]).items():
        owner, dot, attribute = name.rpartition(".")
        prefix = f"{owner}{dot}sparse_state.{attribute}."
        index = Index(*(tensors[prefix + field] for field in Index._fields))
        geometry = Geometry(tuple(facts["shape"]), tuple(facts["perm"]), facts["lead"], tuple(facts["block"]))
        found[name] = index, geometry
    return found


def _measure_site(name: str, index: Index, geometry: Geometry, args: argparse.Namespace) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    fwd, bwd = (1 - int(count) / geometry.units for count in (_fwd_counts(index).sum(), index.row_ptr[-1]))
    drawn = random_index(geometry, fwd, bwd, generator)
    trained, even = (layer_on(sets, geometry, ROWS, generator) for sets in (index, drawn))
    impls = trained.impls(args.impl)
    rows = []
    for threads in args.threads:
        row = {"site": name, "matrix": (geometry.rows, geometry.cols), "m": ROWS, "bound": bound(fwd, bwd)}
        row |= {"fullest row / mean": {"trained": _fullest(index), "random": _fullest(drawn)}}
        row |= measure_layer(trained, impls, args.repeats, threads)
        if impls is not None:
            row["random ratio"] = measure_layer(even, impls, args.repeats, threads)["ratio"]
            row["trained / random"] = _against(even, trained, impls, args.repeats)
        rows.append(row)
    return rows


def _against(even: Layer, trained: Layer, impls: dict[str, str], repeats: int) -> dict[str, float]:
    return measure(even.sparse(impls), trained.sparse(impls), repeats).ratio()


def _fwd_counts(index: Index) -> torch.Tensor:
    return index.row_fwd - index.row_ptr[:-1]


def _fullest(index: Index) -> float:
    counts = _fwd_counts(index).double()
    return float(counts.max() / counts.mean())


def trained_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"sets of a trained model, M={ROWS}, time sparse / dense, median and quartiles")
    for head in ("threads", "site", "rows x cols", "fullest row", "bound", "trained", "random", "trained / random"):
        table.add_column(head, justify="right")
    for row in rows:
        names = ("ratio", "random ratio", "trained / random")
        figures = [show(row[name]) for name in names] if row["impl"] else ["does not fit"]
        size, full = "{} x {}".format(*row["matrix"]), f"{row['fullest row / mean']['trained']:.1f} x mean"
        table.add_row(str(row["threads"]), row["site"], size, full, f"{row['bound']:.3f}", *figures)
    return table
