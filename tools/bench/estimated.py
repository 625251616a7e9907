"""The benchmark ``estimated``: what ``topkast.estimate`` costs, and how near it comes to measured steps.

Each model is estimated with an empty cache in a process of its own. Then real training steps are measured: the plain
model and the converted model, both compiled. Times are those of the processor, with one thread, so that other programs
on the machine matter little.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

import topkast
from topkast.compiler.advise.site_costs import seconds_of
from topkast.compiler.config import Config
from topkast.tools.common.results import CONSOLE

STEPS = 5  # timed of each side; two come before
FWD, BWD = 0.9, 0.8
Example = tuple[nn.Module, dict[str, Tensor] | Tensor]


def _gpt2(quick: bool) -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_embd=64, n_head=2) if quick else GPT2Config()
    words = torch.randint(config.vocab_size, (1, 128))
    return GPT2LMHeadModel(config), {"input_ids": words, "labels": words}


def _bert(quick: bool) -> Example:
    from transformers import BertConfig, BertForSequenceClassification

    small: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 64}
    small |= {"intermediate_size": 128, "num_attention_heads": 2}
    config = BertConfig(**small) if quick else BertConfig()
    words = torch.randint(config.vocab_size, (1, 128))
    return BertForSequenceClassification(config), {"input_ids": words, "labels": torch.ones(1, dtype=torch.int64)}


def _resnet50(quick: bool) -> Example:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[64, 128], depths=[1, 1]) if quick else ResNetConfig()
    return ResNetForImageClassification(config), {"pixel_values": torch.randn(4, 3, 224, 224)}


def _mlp(width: int) -> Callable[[bool], Example]:
    def build(quick: bool) -> Example:
        layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
        return nn.Sequential(*layers), torch.randn(32 if quick else 256, width)

    return build


class _Words(nn.Module):
    """Two layers of LSTM between an embedding and an output layer, for a hundred words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.layers = nn.Embedding(100, width), nn.LSTM(width, width, 2)
        self.out = nn.Linear(width, 100)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.layers(self.words(words))[0])


def _lstm(width: int) -> Callable[[bool], Example]:
    return lambda quick: (_Words(16 if quick else width), torch.randint(100, (35, 20)))


MODELS: dict[str, tuple[str, Callable[[bool], Example]]] = {
    "mlp": ("3 linear layers of width 128, 256 rows", _mlp(128)),
    "wide": ("3 linear layers of width 1024, 256 rows", _mlp(1024)),
    "bert": ("BERT-base, 1 x 128 tokens", _bert),
    "gpt2": ("GPT-2 small, 1 x 128 tokens", _gpt2),
    "lstm200": ("2 layers of LSTM of width 200, 35 x 20 words", _lstm(200)),
    "lstm650": ("2 layers of LSTM of width 650, 35 x 20 words", _lstm(650)),
    "resnet50": ("ResNet-50, 4 images of 224 x 224", _resnet50),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument(
        "--backend", choices=("inductor", "aot_eager"), default="inductor", help="of the measured steps"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Estimate and measure every model, each in a new process."""
    rows = []
    for name in args.model:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", __spec__.name, name, args.backend, str(int(args.quick))]
            environment = os.environ | {"TOPKAST_CACHE": folder, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        CONSOLE.print(rows[-1])
    CONSOLE.print(_table(rows))
    return {"rows": rows}


def _child(name: str, backend: str, quick: bool) -> dict[str, Any]:
    says, build = MODELS[name]
    torch.manual_seed(0)
    model, inputs = build(quick)
    start = time.perf_counter(), time.process_time()
    found = topkast.estimate(model, inputs, fwd=FWD, bwd=BWD)
    spent = {"clock": time.perf_counter() - start[0], "cpu": time.process_time() - start[1]}
    row: dict[str, Any] = {"model": name, "says": says, "seconds": spent, "timed": len(found.products)}
    row |= {"estimate": found.seconds, "ratio": found.ratio, "gains": found.gains, "why": found.why}
    measured = _measured(model, inputs, backend)
    return row | {"measured": measured, "measured ratio": measured["sparse"] / measured["dense"]}


def _measured(model: nn.Module, inputs: Any, backend: str) -> dict[str, float]:
    """Seconds of a training step, the least of :data:`STEPS`, and a hundredth of a refresh for the sparse model."""
    dense, sparse = model, copy.deepcopy(model)
    dense.compile(backend=backend)
    topkast.compile(sparse, FWD, BWD, example_inputs=inputs, backend=backend, refresh_every=2**31)
    found = {}
    for side, twin in (("dense", dense), ("sparse", sparse)):
        optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4)

        def step(twin: nn.Module = twin, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            out = twin(**inputs) if isinstance(inputs, dict) else twin(inputs)
            loss = out if isinstance(out, Tensor) else out.get("loss", out.get("logits"))
            loss.float().square().mean().backward()
            optimizer.step()

        found[side] = min([seconds_of(step) for _ in range(2 + STEPS)][2:])
    refresh = min(seconds_of(lambda: topkast.refresh(sparse)) for _ in range(2))
    return found | {"sparse": found["sparse"] + refresh / Config.refresh_every}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="topkast.estimate, beside measured steps")
    for heading in ("model", "CPU s", "clock s", "timed", "estimate", "measured", "says that it gains"):
        table.add_column(heading)
    for row in rows:
        spent = [f"{row['seconds'][which]:.1f}" for which in ("cpu", "clock")]
        ratios = [f"{row[which]:.2f}" for which in ("ratio", "measured ratio")]
        table.add_row(row["says"], *spent, str(row["timed"]), *ratios, "yes" if row["gains"] else row["why"])
    return table


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], sys.argv[2], sys.argv[3] == "1")))
