"""Mask dynamics: how the sets of a small GPT-2 move while it trains, and how far two seeds are apart.

Two models from two seeds train on the same text. Plots, per layer over time: churn, distance to the first sets, share
of the weights that was ever in A. Between the seeds: the distance as it is and after the best matching of
interchangeable neurons, at the start and at the end, each beside the same for shuffled masks, since a matching finds
some overlap in any two sets.

`python -m topkast.tools.study report` makes a table with intervals of the `between_seeds.json` of several runs (`--seed
0`, `--seed 2`, ...) that were put into tools/results/study/topology/ under any names.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

import torch
from rich.table import Table
from torch import Tensor

import topkast
import topkast.tools.demo.__main__ as demo
from topkast.compiler.topology.interchangeable import Interchangeable
from topkast.tools.common.loop import make_side, train_step
from topkast.tools.common.results import CONSOLE, machine, progress
from topkast.tools.common.text import Text, load_text
from topkast.tools.study.shown.plot_dynamics import plot_bars, plot_layers

Masks = dict[str, tuple[Tensor, Tensor]]
PLOTS = {
    "churn": ("new", "churn: new in the set since the refresh before"),
    "from_first": ("from_first", "distance to the first set"),
    "ever_active": ("ever_active", "share of the weights that was ever in A"),
}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The demo's arguments, with another default folder."""
    given = sys.argv[1:] if argv is None else argv
    return demo.arguments(["--out", "build/dynamics", *given])


def train_one(
    args: argparse.Namespace, seed: int, text: Text
) -> tuple[topkast.Dynamics, Masks, Masks, torch.nn.Module]:
    """The recorder, the first and the last sets and the model of one seed."""
    args = argparse.Namespace(**{**vars(args), "seed": seed})
    model = topkast.compile(
        demo.build_model(args),
        args.fwd,
        args.bwd,
        block=args.block,
        refresh_every=args.refresh_every,
        backend=args.backend,
    )
    side, generator = make_side(f"seed {seed}", model, args), torch.Generator().manual_seed(seed)
    first = topkast.masks(model)
    with topkast.Dynamics(model) as dynamics, progress() as bar:
        for _ in bar.track(range(args.steps), description=f"training, seed {seed}"):
            train_step(side, *(part.to(args.device) for part in text.batch(generator, args.batch, args.length)))
    CONSOLE.print(f"seed {seed}: {side.training[0]:.2f} -> {side.training[-1]:.2f} bits per byte", highlight=False)
    return dynamics, first, topkast.masks(model), model


def shuffled(masks: Masks, seed: int) -> Masks:
    """Sets of the same sizes with their members anywhere, A still inside B."""
    draw, made = torch.Generator().manual_seed(seed), {}
    for name, (fwd, bwd) in masks.items():
        order = torch.randperm(fwd.numel(), generator=draw)
        made[name] = (fwd.cpu().flatten()[order].view_as(fwd), bwd.cpu().flatten()[order].view_as(bwd))
    return made


def compare(one: Masks, two: Masks, found: Interchangeable) -> dict[str, topkast.topology.MaskDistance]:
    """Distance of two models and of two shuffled ones, before and after matching."""
    mixed = shuffled(one, 0), shuffled(two, 1)
    return {
        "as they are": topkast.topology.mask_distance(one, two),
        "matched": topkast.topology.mask_distance(one, two, match=found),
        "shuffled": topkast.topology.mask_distance(*mixed),
        "shuffled, matched": topkast.topology.mask_distance(*mixed, match=found),
    }


def table(apart: dict[str, dict[str, topkast.topology.MaskDistance]]) -> Table:
    made = Table(title="distance between seeds (A, B): 0 the same sets, 1 nothing in common", title_justify="left")
    for head in ("sets", *next(iter(apart.values()))):
        made.add_column(head)
    for when, ways in apart.items():
        made.add_row(when, *(f"{d.forward:.3f}, {d.backward:.3f}" for d in ways.values()))
    return made


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    text = load_text(args.text, args.length)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = {seed: train_one(args, seed, text) for seed in (args.seed, args.seed + 1)}
    (recorded, *ends, model), (_, *others, _) = runs.values()
    found = topkast.topology.interchangeable(model)
    apart = {when: compare(one, two, found) for when, one, two in zip(("start", "end"), ends, others, strict=True)}
    for name, (what, title) in PLOTS.items():
        plot_layers(args.out / f"{name}.svg", f"{args.model}, {title}", recorded.layers, recorded.total, what)
    bars = {when: {way: d.forward for way, d in ways.items()} for when, ways in apart.items()}
    plot_bars(args.out / "between_seeds.svg", f"{args.model}: distance of A between two seeds", bars)
    CONSOLE.print(table(apart))
    distances = {when: {way: _plain(d) for way, d in ways.items()} for when, ways in apart.items()}
    files = {
        "dynamics": {"seeds": {str(seed): dynamics.to_dict() for seed, (dynamics, *_) in runs.items()}},
        "between_seeds": {"between seeds": distances},
    }
    for name, found_there in files.items():
        given = {key: str(value) for key, value in vars(args).items()}
        facts = {"machine": machine(), "arguments": given, **found_there}
        (args.out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    pictures = ", ".join(f"{name}.svg" for name in [*PLOTS, "between_seeds"])
    CONSOLE.print(f"wrote dynamics.json, between_seeds.json, {pictures} in {args.out}")
    return 0


def _plain(distance: topkast.topology.MaskDistance) -> dict[str, object]:
    return {key: value for key, value in asdict(distance).items() if key != "permutations"}


if __name__ == "__main__":
    sys.exit(main())
