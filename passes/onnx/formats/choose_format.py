"""Which format "auto" takes for a weight: the fastest that is measured, and never one that loses to dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .record import Format
from .weight import Weight

NOISE = 1.1  # formats whose times differ by less are equally fast: the first of them is taken
Timer = Callable[[Weight, Sequence[Format]], dict[str, float]]  # -> {name of a format: share of the dense time}


def choose_format(
    weight: Weight, fastest_first: Sequence[Format], smallest: Format, timer: Timer | None = None
) -> tuple[Format, str]:
    """(format, why) of a weight.

    Args:
        weight: as it would be stored.
        fastest_first: formats that save time; the first that was measured to be faster than dense is taken.
        smallest: taken if none of them is faster, or if the one that is does not suit the weight.
        timer: times those that earlier measurements do not rule out; the fastest is taken. None: the first of them.
    """
    why = weight.other_use()
    if why is not None:
        return smallest, why
    if timer is not None:
        likely = [format for format in fastest_first if may_be_faster(format, weight)]
        if likely:
            weight.times = timer(weight, likely)
            least = min(weight.times.values())
            fastest = next(format for format in likely if weight.times[format.name] <= NOISE * least)
            if least < 1:
                return fastest, f"{_gain(fastest, weight)}, the fastest that was timed here"
            return smallest, "timed here, no format is faster than dense"
    for format in fastest_first:
        assert format.slower is not None
        why = format.slower(weight)
        if why is None:
            refused = format.suits(weight)
            return (format, _gain(format, weight)) if refused is None else (smallest, refused)
    assert why is not None
    return smallest, why


def may_be_faster(format: Format, weight: Weight) -> bool:
    """Whether the format suits the weight, and was measured to be faster than dense for such weights."""
    assert format.slower is not None
    return format.slower(weight) is None and format.suits(weight) is None


def _gain(format: Format, weight: Weight) -> str:
    if format.name == "dense":
        return "products of integers: faster in any ONNX Runtime"
    r, c = weight.matrix.block
    where = "with topkast's library, as fast as dense without" if format.needs_library else "in any ONNX Runtime"
    return f"blocks of {r} x {c}: faster {where}"
