"""The record of one format of weights in an ONNX file. All code and texts about formats derive from these records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from topkast.passes.onnx.blocks import Block

from .weight import Weight


def suits_all(weight: Weight) -> None:
    """For a format that can store any weight."""


@dataclass(frozen=True)
class Format:
    """One way to store a weight.

    Args:
        name: as a caller of ``topkast.export`` gives it.
        sentence: what a user reads about the format; it follows the name and a colon.
        write: stores the weight in its graph; returns (rows and columns of a stored unit, bytes of the constants).
            None for the unit: the weight is stored dense.
        suits: None if the format can store the weight, or the reason why not.
        slower: None if products with the weight were measured to be faster than dense ones, or the reason to expect
            that they are not. None instead of a function: the format saves no time.
        cost: bytes that the weight would take. The weight is stored dense if these are no fewer. None instead of a
            function: the weight is stored whatever it takes.
        keeps_float: why the format does not store the weight in int8, None if it does. The weight has that precision.
        needs_library: whether products are faster only with topkast's library.
    """

    name: str
    sentence: str
    write: Callable[[Weight], tuple[Block | None, int]]
    suits: Callable[[Weight], str | None] = suits_all
    slower: Callable[[Weight], str | None] | None = None
    cost: Callable[[Weight], int] | None = None
    needs_library: bool = False
    keeps_float: Callable[[Weight], str | None] = suits_all
