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
        "action", choices=["clear"], help="delete the files; the next model measures its products again"
    )


def answer(args: argparse.Namespace) -> Answer:
    """Delete the planner's files."""
    files = [str(path) for path in cache.clear()]
    deleted = "\n".join(f"deleted {path}" for path in files) or f"nothing to delete in {cache.folder()}"
    return Answer({"folder": str(cache.folder()), "deleted": files}, [deleted])
