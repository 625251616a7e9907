"""Benchmarks: sparse beside dense, as the median ratio of interleaved pairs, with the bound by FLOPs next to it.

    kernels  the three products of a linear layer, and what others offer for them
    step     whole training steps of a GPT-2 and of a ResNet-50
    autocast training steps in bfloat16 and float32, dense and sparse, in turn
    model    resident memory of a 100-million-parameter model while it trains
    large    a model that dense training does not fit
    sharded  FSDP2 on 2 and 4 processes: distance from one process
    traffic  FSDP2 on 2 and 4 processes: bytes held and sent
    scale    bytes that FSDP2 holds and sends on each rank, for models of 1.3 to 70 billion parameters
    onnx     exported files in ONNX Runtime: latency, size, load time
    int8     sparse and int8 together: whole models, and the quality after int8
    convs    ResNet-50's convolutions in ONNX Runtime, node by node
    tokens   tokens a second of a GPT-2 with its key-value cache in ONNX Runtime
    estimated  what topkast.estimate costs, and how near it comes to measured steps
    waiting  five short scripts from their start, with empty caches and again: seconds, and what is compiled

All but `scale`, `sharded`, `traffic`, `estimated`, `waiting` and those in ONNX Runtime take `--device cuda`. Each
writes one JSON file. `--quick` is a tiny sample to show that everything runs; its figures mean nothing. `python -m
topkast.tools.bench.picture` draws the README's picture.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path

import torch

from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import machine, write

MODULES = {
    "kernels": "kernels",
    "step": "step",
    "autocast": "autocast_step",
    "model": "memory",
    "large": "large",
    "sharded": "scale.sharded",
    "traffic": "scale.traffic",
    "scale": "scale.scale_table",
    "onnx": "onnx_runtime.onnx",
    "int8": "onnx_runtime.int8_tables",
    "convs": "onnx_runtime.onnx_convs",
    "tokens": "onnx_runtime.onnx_tokens",
    "estimated": "estimated",
    "waiting": "waiting.waiting_table",
}


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line. Only the named benchmark's module is imported: they need different, large packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in MODULES.items():
        command = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        if name not in argv[:1]:
            continue
        command.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
        command.add_argument("--quick", action="store_true", help="a tiny sample: does everything run?")
        loaded = importlib.import_module(f"topkast.tools.bench.{module}")
        loaded.add_arguments(command)
        command.set_defaults(run=loaded.run)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(sys.argv[1:] if argv is None else argv)
    for name in ("transformers", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    facts = machine()
    if getattr(args, "device", torch.device("cpu")).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(args.device)
    given = {key: value for key, value in vars(args).items() if key not in ("run", "out")}
    write(args.out, facts, given, args.run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
