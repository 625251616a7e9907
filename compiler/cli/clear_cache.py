"""The command ``topkast cache clear``: forget the measured times of products."""

from __future__ import annotations

import argparse

from topkast.runtime.planner import cache

from .answer import Answer

NAME = "cache"
HELP = "delete the times that the planner has measured on this machine"
EXAMPLES = ("topkast cache clear",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument(
        "action", choices=["clear"], help="delete the times; the next model measures its products again"
    )


def answer(args: argparse.Namespace) -> Answer:
    """Forget the planner's times."""
    times = cache.clear()
    text = f"{times} times deleted" if times else "no times to delete"
    return Answer({"folder": str(cache.folder()), "deleted": times}, [f"{text} in {cache.folder()}"])
