"""nanoGPT's own ``train.py`` and ``sample.py`` with one line more: what its rules and files make of a sparse model.

    git clone https://github.com/karpathy/nanoGPT && python -m topkast.tools.zoo.nanogpt nanoGPT

Trains on characters of the standard library, dense and sparse, then resumes the sparse run and samples from it. The
table shows which matrices decay (nanoGPT asks each parameter for its ``dim()``), the losses, whether the clock went on,
and how long a sample takes, imports and all. A validation draws its own batches, so two of one model differ a little.
The scripts are run as they stand, in a copy of the folder.
"""

from __future__ import annotations

import argparse
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from topkast.tools.common.results import machine, write

IMPORT = "from model import GPTConfig, GPT\n"
LINE = (
    "import topkast; _GPT = GPT; "
    "GPT = lambda config: topkast.{how}(_GPT(config), fwd=0.9, bwd=0.8, refresh_every=20{more})\n"
)
SMALL = "n_layer=2 n_head=2 n_embd=64 block_size=64 batch_size=8 gradient_accumulation_steps=1 learning_rate=2e-3 "
SETTINGS = SMALL + "warmup_iters=5 device=cpu dtype=float32 compile=False dataset=characters eval_iters=200"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a clone of nanoGPT")
    parser.add_argument(
        "--steps",
        type=int,
        default=200,
        help="of the dense and the sparse run; the resumed one goes on for half as many",
    )
    parser.add_argument("--backend", default="inductor", help="of topkast.compile, for training")
    parser.add_argument("--out", type=Path, default=Path("build/nanogpt.json"), help="where the figures go")
    args = parser.parse_args(argv)
    if not (args.folder / "train.py").is_file() or IMPORT not in (args.folder / "train.py").read_text():
        parser.error(f"{args.folder}: must be a clone of nanoGPT, whose train.py says {IMPORT.strip()!r}")
    if args.steps < 20:
        parser.error(f"--steps {args.steps}: must be 20 or more, one refresh")
    with tempfile.TemporaryDirectory() as temporary:
        found: dict[str, Any] = {}
        every = args.steps // 2  # a resumed run begins with a validation, and ends with one
        for kind in ("dense", "sparse"):
            folder = _prepared(args.folder, Path(temporary) / kind, None if kind == "dense" else args.backend)
            found[kind] = _trained(folder, args.steps, every)
            if kind == "sparse":
                found["resumed"] = _trained(folder, args.steps + every, every, "--init_from=resume")
                found["sampled"] = _sampled(folder)
    Console().print(_table(found))
    arguments = {"steps": args.steps, "backend": args.backend, "settings": SETTINGS, "threads": torch.get_num_threads()}
    write(args.out, machine(), arguments, found)
    return found


def _prepared(source: Path, folder: Path, backend: str | None) -> Path:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".git", "data"))
    for script, how, more in (("train.py", "compile", f', backend="{backend}"'), ("sample.py", "sparsify", "")):
        path = folder / script
        line = "" if backend is None else LINE.format(how=how, more=more)
        path.write_text(path.read_text().replace(IMPORT, IMPORT + line))
    (folder / "tiktoken.py").write_text("")  # sample.py imports the package, and characters need none of it
    data = folder / "data" / "characters"
    data.mkdir(parents=True)
    sources = sorted(Path(re.__file__).parent.parent.glob("*.py"))[:60]
    text = "".join(path.read_text(errors="ignore") for path in sources)
    letters = sorted(set(text))
    numbers = np.array([letters.index(letter) for letter in text[:400_000]], dtype=np.uint16)
    numbers[:-40_000].tofile(data / "train.bin")
    numbers[-40_000:].tofile(data / "val.bin")
    meta = {"vocab_size": len(letters), "stoi": {c: i for i, c in enumerate(letters)}, "itos": dict(enumerate(letters))}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def _trained(folder: Path, steps: int, every: int, *more: str) -> dict[str, Any]:
    settings = [f"--{setting}" for setting in SETTINGS.split()]
    start = time.perf_counter()
    said = _run(folder, "train.py", *settings, f"--max_iters={steps}", f"--eval_interval={every}", *more)
    losses = [float(loss) for loss in re.findall(r"val loss ([\d.]+)", said)]
    groups = [[int(n.replace(",", "")) for n in pair] for pair in re.findall(r"tensors: (\d+), with ([\d,]+)", said)]
    model = torch.load(folder / "out" / "ckpt.pt", weights_only=True)["model"]
    return {
        "decayed": groups[0],
        "not decayed": groups[1],
        "validation loss": [losses[0], losses[-1]],
        "seconds": time.perf_counter() - start,
        "sparse weights": sum(key.endswith(".clock") for key in model),
        "clock": sorted({int(value[0]) for key, value in model.items() if key.endswith(".clock")}),
    }


def _sampled(folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    said = _run(folder, "sample.py", "--device=cpu", "--dtype=float32", "--num_samples=1", "--max_new_tokens=100")
    return {"seconds": time.perf_counter() - start, "letters": len(said)}


def _table(found: dict[str, Any]) -> Table:
    table = Table("", *found, title="nanoGPT's scripts with one line more")
    rows = list(dict.fromkeys(row for column in found.values() for row in column))
    for row in rows:
        table.add_row(row, *(_said(column.get(row)) for column in found.values()))
    return table


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return "" if value is None else f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    main()
