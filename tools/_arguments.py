"""Types of command-line words; what is wrong ends in a usage message."""

from __future__ import annotations

import argparse


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
