"""A product as the dense model has it, before the conversion: PyTorch's product with a weight that lies ready."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.kernels.candidates import DENSE, launch
from topkast.runtime.layout import Index
from topkast.runtime.reference.products import weight as dense_weight

from .interleave import race
from .plan import Drawn, Problem, calls, draw, fitting_kernels, worth_trying


def beside_before(problem: Problem, seconds: float, index: Index | None = None) -> tuple[dict[str, float], float]:
    """Time the kernels that are worth trying and the dense model's product, all in turn; nothing is remembered.

    Args:
        problem: the problem to run.
        seconds: how long to repeat.
        index: of random sets, from :func:`topkast.runtime.planner.plan.draw_index`; None: a new one.

    Returns:
        Seconds by kernel, without a dense kernel if a sparse one is much faster; and seconds of the dense model's
        product.
    """
    names, drawn = worth_trying(problem, fitting_kernels(problem)), draw(problem, index)
    ours = calls(problem, names, drawn)
    # A dense kernel of the converted model makes W_A first, so a sparse kernel that beats "before" beats it too.
    dense = [name for name in names if name in DENSE]
    order = [*(name for name in names if name not in dense), *dense]
    turns = {"before": _call(problem, drawn), **{name: ours[name] for name in order}}
    found = race(turns, seconds, problem.device, always="before", above=dense)
    before = found.pop("before")
    return found, before


def _call(problem: Problem, drawn: Drawn) -> Callable[[], object]:
    operands, given = drawn
    geometry, conv = problem.geometry, problem.conv
    if problem.product.startswith("grouped"):  # such weights are slices of one tensor; PyTorch has no faster way
        fits: Any = DENSE[-1]
        return partial(launch(fits, problem.product), *operands, *given)
    if problem.product == "sddmm":
        dy, x = operands
        return lambda: dy.mT @ x
    shape = geometry.shape
    w: Tensor = torch.full(shape, 0.5, dtype=problem.dtype, device=problem.device) if conv else dense_weight(*given)
    if conv is not None:
        mask = {"conv_input_grad": [True, False, False], "conv_weight_grad": [False, True, False]}.get(problem.product)
        if mask is None:
            return lambda: torch.ops.aten.convolution(operands[0], w, None, *conv)
        dy, x = operands if len(operands) == 2 else (operands[0], operands[0])
        return lambda: torch.ops.aten.convolution_backward(dy, x, w, None, *conv, mask)
    matrix = w.permute(geometry.perm).reshape(geometry.rows, geometry.cols)
    (x,) = operands
    stack = matrix.unflatten(0, (x.shape[0], -1)) if x.dim() == 3 else matrix
    return lambda: x @ (stack.mT if problem.product == "spmm" else stack)
