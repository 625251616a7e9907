"""Tokens a second of a decoder with a key-value cache in ONNX Runtime: sparse files beside dense ones, in one loop.

A GPT-2 of random weights continues one prompt greedily. The time of a new token is that of a whole run without the time
of its first token, which the prompt gives.
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
from topkast.compiler.export.check_arguments import PRECISIONS
from topkast.tools.common.arguments import positive
from topkast.tools.common.onnx_sessions import session
from topkast.tools.common.pairs import add_timing, show, spread
from topkast.tools.common.results import CONSOLE
from topkast.tools.common.rotation import measure_rounds, ratios
from topkast.tools.examples.generate import Decoder

from .dense_int8 import quantise_dynamically
from .onnx import KINDS

BASE, DENSE_INT8 = "dense fp32", "dense int8, dynamic"
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
    rows: list[dict[str, Any]] = []
    layers, width = (2, 64) if args.quick else (12, 768)
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kind:
            CONSOLE.print(f"exporting {kind}", highlight=False)
            files = export_all(kind, Path(folder), layers, width, args)
            for threads in args.threads:
                says = f"GPT-2, {layers} layers of {width}, {args.vocabulary:,} tokens"
                rows.append({"says": says, "kind": kind, "threads": threads, "sides": generation(files, threads, args)})
    CONSOLE.print(tokens_table(rows))
    return {"onnxruntime": onnxruntime.__version__, "rows": rows}


def export_all(kind: str, folder: Path, layers: int, width: int, args: argparse.Namespace) -> dict[str, Path]:
    """The files of one model by side. The embedding, which the head is tied to, stays dense."""
    torch.manual_seed(0)
    format, block = KINDS[kind]
    heads = width // 64
    config = GPT2Config(
        vocab_size=args.vocabulary, n_embd=width, n_layer=layers, n_head=heads, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    topkast.sparsify(model, args.sparsity, args.sparsity, block=block, balanced=format == "block")

    def export(side: str, format: str, precision: str) -> Path:
        # The tokens of all files are compared below.
        example, path = torch.zeros(1, 8, dtype=torch.long), folder / f"{kind} {side}.onnx"
        given: dict[str, Any] = {"format": format, "precision": precision}
        return topkast.export(model, path, (example,), use_cache=True, verify=False, **given).path

    files = {BASE: export(BASE, "dense", "fp32")}
    files[DENSE_INT8] = quantise_dynamically(files[BASE], folder / f"{kind} {DENSE_INT8}.onnx")
    return files | {side: export(side, format, side.removeprefix("sparse ")) for side in _sparse(args.precision)}


def _sparse(precisions: list[str]) -> list[str]:
    return [f"sparse {precision}" for precision in precisions]


def generation(files: dict[str, Path], threads: int, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All files continue one prompt, in rounds: times of the first token and of the others, and how many tokens are
    those of the dense file in float32."""
    library = topkast.onnx.library_path()
    prompt = np.random.default_rng(0).integers(args.vocabulary, size=args.prompt).tolist()
    decoders = {side: Decoder(session(path, threads, library)) for side, path in files.items()}
    first = measure_rounds({s: partial(d.generate, [prompt], 1) for s, d in decoders.items()}, args.repeats)
    whole = measure_rounds({s: partial(d.generate, [prompt], args.new) for s, d in decoders.items()}, args.repeats)
    start = {side: spread(times)["median"] for side, times in first.items()}
    later = {side: [(t - start[side]) / (args.new - 1) for t in times] for side, times in whole.items()}
    texts = {side: one.generate([prompt], args.new) for side, one in decoders.items()}
    first_ratios, later_ratios = ratios(first, BASE), ratios(later, BASE)
    return {
        side: {
            "first token": {"seconds": start[side], "ratio": first_ratios[side]},
            "next token": {"seconds": spread(later[side])["median"], "ratio": later_ratios[side]},
            "tokens a second": spread(1 / seconds for seconds in later[side]),
            "bytes": path.stat().st_size,
            "equal tokens": float((texts[side] == texts[BASE]).mean()),
        }
        for side, path in files.items()
    }


def tokens_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="generation with a cache, batch 1: tokens a second, and time / dense fp32, median [quartiles]")
    for head in ("blocks", "side", "threads", "tokens a second", "a new token", "the prompt", "file", "equal tokens"):
        table.add_column(head, justify="left" if head in ("blocks", "side") else "right")
    for row in rows:
        base = row["sides"][BASE]["bytes"]
        for side, one in row["sides"].items():
            table.add_row(
                row["kind"],
                side,
                str(row["threads"]),
                f"{one['tokens a second']['median']:.1f}",
                show(one["next token"]["ratio"]),
                show(one["first token"]["ratio"]),
                f"{one['bytes'] / base:.2f}",
                f"{one['equal tokens']:.0%}",
            )
    return table
