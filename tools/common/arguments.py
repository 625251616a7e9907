"""Types of command-line words; what is wrong ends in a usage message."""

from __future__ import annotations

import argparse

import torch


def positive(word: str) -> int:
    """A whole number above 0."""
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number above 0")
    return int(word)


def block(word: str) -> tuple[int, int]:
    """ROWSxCOLUMNS."""
    parts = word.lower().split("x")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{word!r} is not ROWSxCOLUMNS, such as 1x1 or 16x16")
    return positive(parts[0]), positive(parts[1])


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where a benchmark runs."""
    parser.add_argument("--device", type=place, default=torch.device("cpu"), help="cpu, or cuda: timed by events")


def place(word: str) -> torch.device:
    """cpu or cuda, if there is one."""
    if word not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither cpu nor cuda")
    if word == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no GPU that this torch can use")
    return torch.device(word)
