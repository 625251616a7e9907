"""Which format "auto" takes for a weight: the fastest that was measured, and never one that loses to dense."""

from __future__ import annotations

from collections.abc import Sequence

from .record import Format
from .weight import Weight


def choose_format(weight: Weight, fastest_first: Sequence[Format], smallest: Format) -> tuple[Format, str]:
    """(format, why) of a weight.

    Args:
        weight: as it would be stored.
        fastest_first: formats that save time; the first that was measured to be faster than dense is taken.
        smallest: taken if none of them is faster, or if the one that is does not suit the weight.
    """
    why = weight.other_use()
    if why is not None:
        return smallest, why
    for format in fastest_first:
        assert format.slower is not None
        why = format.slower(weight)
        if why is None:
            refused = format.suits(weight)
            return (format, _gain(format, weight)) if refused is None else (smallest, refused)
    assert why is not None
    return smallest, why


def _gain(format: Format, weight: Weight) -> str:
    r, c = weight.matrix.block
    where = "with topkast's library, as fast as dense without" if format.needs_library else "in any ONNX Runtime"
    return f"blocks of {r} x {c}: faster {where}"
