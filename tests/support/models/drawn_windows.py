"""Windows of convolutions, drawn by hypothesis."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st


def drawn_window(draw: st.DrawFn, most: dict[int, int]) -> tuple[dict[str, Any], list[int]]:
    """The attributes of a convolution, as ONNX names them, and the size of an image with at least one result.

    Args:
        draw: draws from a strategy.
        most: number of dimensions -> how much larger than the smallest image a side may be.
    """
    dims, groups = draw(st.sampled_from([1, 2, 2, 3])), draw(st.sampled_from([1, 1, 2, 3]))
    kernel, strides, dilations = (draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims)) for _ in range(3))
    pads = draw(st.lists(st.integers(0, 3), min_size=2 * dims, max_size=2 * dims))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    least = [max(1, n + 1 - pads[d] - pads[dims + d]) for d, n in enumerate(reach)]
    size = [draw(st.integers(one, n + most[dims])) for one, n in zip(least, reach, strict=True)]
    window = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": groups}
    return window, size
