"""Tokens a second of a decoder with a key-value cache in ONNX Runtime: a sparse file beside the dense one in float32.

A GPT-2 of random weights continues one prompt greedily. The time of a new token is that of a whole run without that of
its first token, which the prompt gives.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

import topkast
from topkast.compiler.export.api import PRECISIONS
from topkast.tools.bench.layer import block_name
from topkast.tools.common.arguments import positive
from topkast.tools.common.onnx_sessions import session
from topkast.tools.common.pairs import Pairs, add_timing, measure, show, spread
from topkast.tools.common.results import CONSOLE
from topkast.tools.examples.generate import Decoder

from .onnx import KINDS

GPT2_WORDS = 50257


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, repeats=7)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="format and block of the weights")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="of the sparse weights")
    parser.add_argument("--vocabulary", type=positive, default=GPT2_WORDS, help="tokens; the head stays dense")
    parser.add_argument("--prompt", type=positive, default=32, help="tokens of the prompt")
    parser.add_argument("--new", type=positive, default=32, help="new tokens, at least 2")


def run(args: argparse.Namespace) -> dict[str, object]:
    rows = []
    layers, width = (2, 64) if args.quick else (12, 768)
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kind:
            format, block = KINDS[kind]
            model = decoder(layers, width, args.vocabulary, args.sparsity, block, balanced=format == "block")
            CONSOLE.print(f"exporting {kind}", highlight=False)
            dense = exported(model, Path(folder) / "dense.onnx", "dense", "fp32")
            for precision in args.precision:
                sparse = exported(model, Path(folder) / "sparse.onnx", format, precision)
                for threads in args.threads:
                    rows.append(
                        {
                            "says": f"GPT-2, {layers} layers of {width}, {args.vocabulary:,} tokens",
                            "format": format,
                            "block": block,
                            "precision": precision,
                            "threads": threads,
                            "bytes": {"dense": dense.stat().st_size, "sparse": sparse.stat().st_size},
                            **generation(dense, sparse, threads, args),
                        }
                    )
    CONSOLE.print(tokens_table(rows))
    return {"onnxruntime": onnxruntime.__version__, "rows": rows}


def decoder(
    layers: int, width: int, vocabulary: int, sparsity: float, block: tuple[int, int], balanced: bool
) -> torch.nn.Module:
    """A GPT-2 whose layers are sparse. The embedding, which the head is tied to, stays dense."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=width // 64, bos_token_id=0, eos_token_id=0
    )
    return topkast.sparsify(GPT2LMHeadModel(config).eval(), sparsity, sparsity, block=block, balanced=balanced)


def exported(model: torch.nn.Module, path: Path, format: str, precision: str) -> Path:
    # Generation itself compares the files: the tokens of both are stored.
    example = torch.zeros(1, 8, dtype=torch.long)
    topkast.export(model, path, (example,), format=format, precision=precision, use_cache=True, verify=False)
    return path


def generation(dense: Path, sparse: Path, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both files continue one prompt in turn: times of the first token and of the others, and whether they agree."""
    library = topkast.onnx.library_path()
    decoders = [Decoder(session(path, threads, library)) for path in (dense, sparse)]
    prompt = np.random.default_rng(0).integers(args.vocabulary, size=args.prompt).tolist()
    texts = [one.generate([prompt], args.new) for one in decoders]
    sides = [[partial(one.generate, [prompt], count) for count in (1, args.new)] for one in decoders]
    pairs = measure(*sides, args.repeats)
    each = Pairs(
        *([[(whole - first) / (args.new - 1)] for first, whole in side] for side in (pairs.dense, pairs.sparse))
    )
    return {
        "first token": {"ratio": pairs.ratio(0), "seconds": pairs.seconds(0)},
        "next token": {"ratio": each.ratio(), "seconds": each.seconds()},
        "tokens a second": {
            name: spread(1 / seconds for (seconds,) in side)
            for name, side in (("dense", each.dense), ("sparse", each.sparse))
        },
        "equal tokens": float((texts[0] == texts[1]).mean()),
    }


def tokens_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="generation with a cache, batch 1: tokens a second, and sparse / dense time")
    for head in ("format", "threads", "dense", "sparse", "a new token", "the prompt", "file", "equal tokens"):
        table.add_column(head, justify="left" if head == "format" else "right")
    for row in rows:
        table.add_row(
            f"{row['format']} {block_name(row['block'])} {row['precision']}",
            str(row["threads"]),
            *(f"{row['tokens a second'][side]['median']:.1f}" for side in ("dense", "sparse")),
            show(row["next token"]["ratio"]),
            show(row["first token"]["ratio"]),
            f"{row['bytes']['sparse'] / row['bytes']['dense']:.2f}",
            f"{row['equal tokens']:.0%}",
        )
    return table
