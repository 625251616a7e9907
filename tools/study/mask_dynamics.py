"""Mask dynamics: how the sets of a small GPT-2 move while it trains, and how far two seeds are apart.

Two models from two seeds train on the same text. dynamics.json has, per layer over time: churn, distance to the first
sets, share of the weights that was ever in A. between_seeds.json has the distance as it is and after the best matching
of interchangeable neurons, at the start and at the end, each beside the same for shuffled masks, since a matching finds
some overlap in any two sets. The page has a table of the latter for the runs in tools/results/study/topology/.
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

Masks = dict[str, tuple[Tensor, Tensor]]


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
    args = demo.arguments(["--out", "build/dynamics", *(sys.argv[1:] if argv is None else argv)])
    torch.set_num_threads(args.threads)
    text = load_text(args.text, args.length)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = {seed: train_one(args, seed, text) for seed in (args.seed, args.seed + 1)}
    (_, *ends, model), (_, *others, _) = runs.values()
    found = topkast.topology.interchangeable(model)
    apart = {when: compare(one, two, found) for when, one, two in zip(("start", "end"), ends, others, strict=True)}
    CONSOLE.print(table(apart))
    distances = {
        when: {way: {k: v for k, v in asdict(d).items() if k != "permutations"} for way, d in ways.items()}
        for when, ways in apart.items()
    }
    files = {
        "dynamics": {"seeds": {str(seed): dynamics.to_dict() for seed, (dynamics, *_) in runs.items()}},
        "between_seeds": {"between seeds": distances},
    }
    for name, found_there in files.items():
        given = {key: str(value) for key, value in vars(args).items()}
        facts = {"machine": machine(), "arguments": given, **found_there}
        (args.out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    CONSOLE.print(f"wrote dynamics.json and between_seeds.json in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
