"""Ctrl-C at every line: an interrupt that comes just before a line of topkast that a call runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import topkast

HERE = str(Path(topkast.__file__).parent.resolve())


class Interrupt(KeyboardInterrupt):
    """Nobody else raises this."""


def moments(call: Callable[[], Any], inside: tuple[str, ...] = ("compiler", "runtime")) -> list[int]:
    """Numbers of the lines of the package that ``call`` runs in this thread: of every line its first time and its last.

    Args:
        call: what is run.
        inside: beginnings of paths in the package; the lines of other files do not count.
    """
    first: dict[tuple[str, int], int] = {}
    last: dict[tuple[str, int], int] = {}
    for number, place in enumerate(_run(call, -1, inside)):
        first.setdefault(place, number)
        last[place] = number
    return sorted({*first.values(), *last.values()})


def interrupt(call: Callable[[], Any], at: int, inside: tuple[str, ...] = ("compiler", "runtime")) -> bool:
    """Run ``call`` and interrupt it before its line number ``at`` (the first is 0). Whether the interrupt came out."""
    try:
        _run(call, at, inside)
    except Interrupt:
        return True
    return False


def _run(call: Callable[[], Any], at: int, inside: tuple[str, ...]) -> list[tuple[str, int]]:
    places = tuple(f"{HERE}/{name}" for name in inside)
    known: dict[str, bool] = {}
    ran: list[tuple[str, int]] = []

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            ran.append((frame.f_code.co_filename, frame.f_lineno))
            if len(ran) - 1 == at:
                raise Interrupt
        return line

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in known:
            known[name] = str(Path(name).resolve()).startswith(places)
        return line if known[name] else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
    return ran
