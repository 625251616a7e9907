"""``topkast::weight`` under the transforms of ``torch.func``: grad, vmap, and one in the other.

The operator's own formula for gradients is registered with the dispatcher, which those transforms do not read; they
take an ``autograd.Function``. Batches are walked one by one: an index has no batch dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import ops  # noqa: F401  (defines torch.ops.topkast)

_OPS = torch.ops.topkast


class Weight(torch.autograd.Function):
    """The arguments of ``topkast::weight``; differentiable once, in the values."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _OPS.weight(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:5])
        ctx.geometry = inputs[5:9]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _OPS.weight_grad(grads[0], *ctx.saved_tensors, *ctx.geometry), *(None,) * 8


def _one_by_one(op: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        def pick(i: int) -> list[Any]:
            pairs = zip(args, in_dims, strict=True)  # of a list of numbers the dims are a list too
            return [a.select(dim, i) if isinstance(dim, int) else a for a, dim in pairs]

        return torch.stack([op(*pick(i)) for i in range(info.batch_size)]), 0

    return rule


for _op in (_OPS.weight, _OPS.weight_grad):
    torch.library.register_vmap(_op.default, _one_by_one(_op))
