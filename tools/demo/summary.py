"""What the demo tells at its end: the numbers as JSON, the comparison as a table, the exports as another."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.table import Table

import topkast
from topkast.tools.common.loop import NATS_TO_BITS, Side
from topkast.tools.common.measure import memory, quartiles, weight_flops
from topkast.tools.common.pairs import show
from topkast.tools.common.text import Text


def summarise(args: argparse.Namespace, text: Text, sides: tuple[Side, Side], turnover: list[tuple]) -> dict:
    """Everything measured, as plain numbers: what summary.json holds."""
    dense, sparse = sides
    masks = topkast.masks(sparse.model)
    # The weights of matrix products: every matrix that is not an embedding, and the output layer, which GPT-2 ties to
    # its token embedding (so it stays dense, and does count).
    sizes = {n: p.numel() for n, p in dense.model.named_parameters() if p.ndim == 2 and n.split(".")[1] not in ("wpe",)}
    warm = min(5, args.steps - 1)  # the first steps compile
    ratios = [s / d for d, s in zip(dense.seconds[warm:], sparse.seconds[warm:], strict=True)]
    return {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "versions": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "text": {
            "source": text.source,
            "training": {"bytes": len(text.train), "files": text.train_files},
            "validation": {"bytes": len(text.validation), "files": text.validation_files},
        },
        "sparse parameters": len(masks),
        "models": {
            side.name: {
                "validation bits per byte": side.validation[-1][1],
                "validation loss": side.validation[-1][1] / NATS_TO_BITS,
                "validation curve": side.validation,
                "training curve": side.training,
                "milliseconds per step": [1000 * t for t in quartiles(side.seconds[warm:])],
                "seconds of the first step": side.seconds[0],
                "bytes": memory(side.model, side.optimizer),
                "weight FLOPs per token": weight_flops(sizes, masks if side is sparse else {}),
            }
            for side in sides
        },
        "step time ratio, sparse to dense": quartiles(ratios),
        "timed pairs": len(ratios),
        "churn": turnover,
    }


def _megabytes(part: str, figures: dict) -> float:
    return figures["bytes"][part] / 1e6


def table(summary: dict) -> Table:
    """The comparison, one quantity a row."""
    dense, sparse = summary["models"]["dense"], summary["models"]["sparse"]
    rows = Table(title="dense beside sparse")
    rows.add_column("")
    for head in ("dense", "sparse", "sparse / dense"):
        rows.add_column(head, justify="right")

    def add(label: str, form: str, pick: Callable[[dict], float], ratio: str | None = None) -> None:
        d, s = pick(dense), pick(sparse)
        share = ratio or (f"{s / d:.3f}" if d else "")
        rows.add_row(label, form.format(d), form.format(s), share)

    add("validation loss, nats", "{:.4f}", lambda m: m["validation loss"])
    add("validation bits per byte", "{:.4f}", lambda m: m["validation bits per byte"])
    low, middle, high = summary["step time ratio, sparse to dense"]
    add(
        "time per step, ms (median)",
        "{:.0f}",
        lambda m: m["milliseconds per step"][1],
        f"{middle:.2f} [{low:.2f}, {high:.2f}]",
    )
    add("first step (compiles), s", "{:.1f}", lambda m: m["seconds of the first step"])
    for part in dense["bytes"]:
        add(f"{part}, MB", "{:.2f}", partial(_megabytes, part))
    add("weight FLOPs / token, forward", "{:,}", lambda m: m["weight FLOPs per token"]["forward"])
    add("weight FLOPs / token, training", "{:,}", lambda m: m["weight FLOPs per token"]["training"])
    return rows


def footnote(summary: dict) -> str:
    """What the table's numbers are and are not."""
    return (
        f"step time: {summary['timed pairs']} pairs on the same batches; ratio as median [quartiles].\n"
        "The report above is a summary; print(topkast.report(model).details()) shows all that was measured.\n"
        "memory: tensors kept between steps; activations and the kernels' transient dense weight are not in it."
    )


def export_table(exported: dict) -> Table:
    """The exported file beside the dense one, in ONNX Runtime."""
    rows = Table(title="the exports in ONNX Runtime")
    rows.add_column("")
    for head in ("dense", "sparse", "sparse / dense"):
        rows.add_column(head, justify="right")
    size, run = exported["bytes"], exported["run"]
    seconds = [f"{run['seconds'][side] * 1e3:.2f}" for side in ("dense", "sparse")]
    rows.add_row(f"one batch, ms (median of {run['pairs']} pairs)", *seconds, show(run["ratio"]))
    share = f"{size['sparse'] / size['dense']:.3f}"
    rows.add_row("file, MB", *(f"{size[side] / 1e6:.2f}" for side in ("dense", "sparse")), share)
    return rows


def describe_export(exported: dict) -> str:
    """How the exported file stores its weights, its parity and what it scores."""
    formats = ", ".join(f"{count} {format}" for format, count in exported["formats"].items())
    return (
        f"exported {exported['path']}, its weights {formats}, in {exported['seconds']:.1f} s\n"
        f"parity with PyTorch: max error {exported['max error at export']:.2e} on random inputs "
        f"(checked by the export), {exported['max error on text']:.2e} on validation text, "
        f"logits up to {exported['largest logit']:.1f}\n"
        f"bits per byte of that text: ONNX Runtime {exported['bits per byte, ONNX Runtime']:.4f}, "
        f"PyTorch {exported['bits per byte, PyTorch']:.4f}"
    )
