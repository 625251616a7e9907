"""The main job: train a GPT-2 from transformers on real text, dense beside sparse, then export it and time the export.

Both models start from the same weights, see the same batches and are compiled by the same backend. Every step is timed
as a pair, dense and sparse on one batch, the order changing from pair to pair, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import sys
from pathlib import Path

import torch
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

import topkast
from topkast.tools.common.arguments import block, positive
from topkast.tools.common.loop import Side, make_side, train
from topkast.tools.common.text import VOCABULARY, TextError, load_text

from .plots import plot_churn, plot_run
from .run_exported import run_exported
from .summary import describe_export, export_table, footnote, summarise, table

# name → layers, width, heads; `gpt2` and up are the published sizes, for machines that can.
MODELS = {
    "gpt2-nano": (2, 64, 2),
    "gpt2-tiny": (4, 128, 4),
    "gpt2-mini": (6, 384, 6),
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; anything out of range ends in a usage message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model", choices=MODELS, default="gpt2-tiny", help="size of the GPT-2")
    add("--fwd", type=float, default=0.9, help="forward sparsity: share of each weight the forward pass does not use")
    add("--bwd", type=float, default=0.8, help="backward sparsity: share that gets no gradient; at most --fwd")
    add("--block", type=block, default=(1, 1), metavar="RxC", help="unit that is kept or dropped, such as 16x16")
    add("--refresh-every", type=positive, default=20, metavar="N", help="steps between two choices of the sets")
    add("--steps", type=positive, default=250, help="optimizer steps of each model")
    add("--batch", type=positive, default=8, help="sequences in a batch")
    add("--length", type=positive, default=128, help="bytes in a sequence")
    add("--lr", type=float, default=1e-3, help="peak learning rate of AdamW (warm-up, then cosine), of both models")
    add("--seed", type=int, default=0, help="of the weights and of the batches")
    add("--text", type=Path, metavar="PATH", help="your own text, a file or a folder; default: Python's own sources")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--backend", choices=("inductor", "aot_eager", "eager"), default="inductor", help="torch.compile's, for both")
    add(
        "--threads",
        type=positive,
        default=max(1, (os.cpu_count() or 1) // 2),
        help="CPU threads; more than are idle wait for one another",
    )
    add("--out", type=Path, default=Path("build/demo"), help="folder for plots, ONNX files and summary.json")
    args = parser.parse_args(argv)
    if not 0 <= args.bwd <= args.fwd < 1:
        parser.error(f"--fwd {args.fwd} --bwd {args.bwd}: 0 <= bwd <= fwd < 1 is needed")
    if args.lr <= 0:
        parser.error(f"--lr {args.lr}: must be above 0")
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {args.device}: {str(error).splitlines()[0]}")
    return args


def build_model(args: argparse.Namespace) -> GPT2LMHeadModel:
    """A GPT-2 over bytes, weights drawn from the seed; no dropout, so that both models compute without chance."""
    layers, width, heads = MODELS[args.model]
    torch.manual_seed(args.seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=args.length,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).to(args.device)


def build_sides(args: argparse.Namespace) -> tuple[Side, Side]:
    """The dense and the sparse model from the same weights, compiled (on their first step) by the same backend."""
    dense = build_model(args)
    sparse = copy.deepcopy(dense)
    dense.compile(backend=args.backend)
    sparse = topkast.compile(
        sparse, fwd=args.fwd, bwd=args.bwd, block=args.block, refresh_every=args.refresh_every, backend=args.backend
    )
    return make_side("dense", dense, args), make_side("sparse", sparse, args)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)  # a pipe would be taken for 80 columns
    for name in ("transformers", "torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    try:
        text = load_text(args.text, args.length)
        args.out.mkdir(parents=True, exist_ok=True)
        sides = build_sides(args)
    except (TextError, OSError, topkast.TopkastError) as error:
        console.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        return 2
    parameters = sum(p.numel() for p in sides[0].model.parameters())
    console.print(
        f"{args.model}: {parameters:,} parameters, fwd {args.fwd}, bwd {args.bwd}, "
        f"block {args.block[0]}x{args.block[1]}, {args.steps} steps of {args.batch} x {args.length} bytes, "
        f"{args.backend} on {args.device}\n"
        f"text: {text.source}; training {len(text.train):,} bytes in {text.train_files} files, "
        f"validation {len(text.validation):,} bytes in {text.validation_files} files",
        highlight=False,
        soft_wrap=True,
    )

    turnover = train(args, text, sides, console)
    summary = summarise(args, text, sides, turnover)
    console.print(topkast.report(sides[1].model))
    console.print(table(summary))
    console.print(footnote(summary), markup=False, highlight=False, soft_wrap=True)

    x, y = text.validation_batches(1, args.batch, args.length)[0]
    summary["export"] = run_exported(sides[1].model, args.out / "model.onnx", x.to(args.device), y, args.threads)
    console.print(describe_export(summary["export"]), highlight=False, soft_wrap=True)
    console.print(export_table(summary["export"]))
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot_run(args.out / "run.svg", summary)
    plot_churn(args.out / "churn.svg", summary)
    console.print(f"wrote run.svg, churn.svg, model.onnx, dense.onnx and summary.json in {args.out}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
