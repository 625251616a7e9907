"""Numbers as text: bytes, counts and shares."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes, for example ``4.0 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def count(number: float) -> str:
    """A count to three digits, for example ``7.03 M``."""
    for unit, one in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= one:
            return f"{number / one:.3g} {unit}"
    return f"{number:.0f}"


def share(part: float, whole: float) -> str:
    """A percentage; a dash if there is no whole."""
    return f"{part / whole:.1%}" if whole else "-"


def plural(number: int, noun: str) -> str:
    """A number and its noun, for example ``1 layer`` or ``1,200 layers``."""
    return f"{number:,} {noun}" + "s" * (number != 1)
