"""Time a product as the dense model has it, before the conversion: PyTorch's product with a weight that lies ready."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.kernels.candidates import DENSE, launch
from topkast.runtime.reference.products import weight as dense_weight

from . import cache
from .interleave import interleave
from .plan import Problem, bound, draw


def seconds_before(problem: Problem) -> float:
    """Seconds of the dense model's product, remembered with the planner's times."""
    key = json.dumps(["before", *json.loads(problem.key)[1:3], None, problem.key])
    return cache.remembered(key, partial(_measure, problem), bound(problem))["before"]


def _measure(problem: Problem) -> dict[str, float]:
    return interleave({"before": _call(problem)}, 0.15, problem.device)


def _call(problem: Problem) -> Callable[[], object]:
    operands, given = draw(problem)
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
