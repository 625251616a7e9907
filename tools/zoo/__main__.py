"""Models that nobody here wrote, as they are in their packages, through topkast.compile: what works and what does not.

    run     every model in a process of its own; goes on where it stopped, since what has a record is not run again
    table   the tables of the page docs/models.md, and every failure with its cause, from the records

A run needs torchvision, timm, transformers, torch_geometric, diffusers and peft for the suites of these names:
`make zoo ARGS="run"` installs them into an environment of their own. Weights are random, sizes as small as an
architecture allows, graphs compiled with "aot_eager": the passes are all in it, and what Inductor takes to generate
code would be most of the time. For six models that time is measured, beside plain torch.compile's.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import os
import sys
from pathlib import Path

from topkast.tools.common.places import RESULTS

# Sets and sums are compared with a dense model's, so products run as dense ones, whichever kernel would be faster.
os.environ.setdefault("TOPKAST_KERNEL", "dense")

SUITES = {
    "nn": "torch_nn",
    "torchvision": "torchvision_models",
    "transformers": "transformers_models",
    "timm": "timm_models",
    "others": "others",
    "adapted": "adapted",
}
KERNELS = ("dense", "native", "first")
STAGES = ("model", "plain compile", "compile", "oracle", "copies", "export", "inductor")


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    form = argparse.ArgumentDefaultsHelpFormatter
    run = commands.add_parser("run", formatter_class=form)
    run.add_argument("suites", nargs="*", default=list(SUITES), choices=[*SUITES], help="which, in this order")
    run.add_argument("--name", action="append", metavar="GLOB", help="only models whose name matches; several allowed")
    run.add_argument("--kernel", default="dense", choices=KERNELS, help="what runs the products: TOPKAST_KERNEL")
    run.add_argument("--blocks", action="store_true", help="blocks of 1x1, 4x1, 16x1 and 16x16 in turn, not of 1x1")
    run.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th of these models")
    run.add_argument("--start", type=int, default=0, metavar="N", help="the first of them")
    run.add_argument("--again", action="store_true", help="run also what has a record already")
    run.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="what to ask of each model")
    run.add_argument("--jobs", type=int, default=1, help="processes at a time, one thread each")
    run.add_argument("--seconds", type=float, default=600, help="limit of a model's computing")
    run.add_argument("--memory", type=float, default=16, metavar="GB", help="limit of a model")
    for command in (run, commands.add_parser("table", formatter_class=form)):
        command.add_argument("--out", type=Path, default=RESULTS / "zoo.json", help="the file of records")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(sys.argv[1:] if argv is None else argv)
    if args.command == "table":
        from .records_table import show

        show(args.out)
        return 0
    import torch

    from . import kernel_sample as kernels
    from . import stages as check
    from .runner import key, read, run, write

    torch.set_num_threads(1)
    suites = [importlib.import_module(f"topkast.tools.zoo.suites.{SUITES[suite]}") for suite in args.suites]
    entries = [entry for suite in suites for entry in suite.entries()]
    if args.name:
        entries = [entry for entry in entries if any(fnmatch.fnmatch(entry.name, glob) for glob in args.name)]
    entries = kernels.sample(entries, args.kernel, args.every, args.start, args.blocks)
    if args.again:
        old = {key(entry.suite, entry.name, entry.kernel) for entry in entries}
        write(args.out, {at: record for at, record in read(args.out).items() if at not in old})
    check.warm()
    run(entries, args.out, stages=tuple(args.stages), jobs=args.jobs, seconds=args.seconds, gigabytes=args.memory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
