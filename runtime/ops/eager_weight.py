"""What a module reads in eager mode: W_A, differentiable as often as wanted, also by ``torch.func``.

Two functions, each the other's derivative. (An operator's own autograd formula cannot do this: functorch refuses it in
reverse mode, and in forward mode takes its tangent for zero.) Compiled graphs hold the operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkast.runtime.errors import ModelError
from topkast.runtime.layout import Geometry
from topkast.runtime.state.registry import SITES

from . import operators as ops  # noqa: F401  (defines torch.ops.topkast)


class Read(torch.autograd.Function):
    """W_A from B's values; the gradient is taken at B.

    Arguments as of ``topkast::weight``, the geometry as one: functorch takes tuples apart. In forward mode the
    derivative is that of W_A itself: what is outside A has no effect on it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, *rest: Any) -> Tensor:
        return torch.ops.topkast.weight(values, *rest[:4], *_given(rest[4]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return Sample.apply(grads[0], *ctx.saved_tensors, ctx.geometry), *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return Read.apply(tangents[0], *ctx.saved_tensors, ctx.geometry)


class Sample(torch.autograd.Function):
    """A dense tensor at B. Arguments as of ``topkast::weight_grad``, the geometry as one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(dense: Tensor, *rest: Any) -> Tensor:
        return torch.ops.topkast.weight_grad(dense, *rest[:4], *_given(rest[4]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        row_ptr, _, cols, key = ctx.saved_tensors
        # A row whose forward part ends where the row ends: all of B is read.
        return Read.apply(grads[0], row_ptr, row_ptr[1:], cols, key, ctx.geometry), *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return Sample.apply(tangents[0], *ctx.saved_tensors, ctx.geometry)


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    # Saved as tensors, so that a refresh between forward and backward is an error and not a wrong gradient.
    ctx.save_for_backward(*inputs[1:5])
    ctx.save_for_forward(*inputs[1:5])
    ctx.geometry = inputs[5]


def _given(geometry: Geometry) -> tuple[Any, ...]:
    return geometry.shape, geometry.perm, geometry.lead, geometry.block


def _one_by_one(name: str) -> None:
    """How ``vmap`` runs an operator: for each element of the batch, whatever has one (an index too, in an ensemble)."""
    operator = getattr(torch.ops.topkast, name)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        if name == "weight_grad":
            _refuse_watched(args[4])
        results = [
            operator(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return torch.stack(results), 0

    torch.library.register_vmap(f"topkast::{name}", rule)


def _refuse_watched(key: Tensor) -> None:
    """A method that grows by a backward's one gradient cannot tell what a program makes of a batch of them."""
    site = SITES.get(int(key))
    if site is not None and site.method.watches:
        raise ModelError(
            f"{site.name}: torch.func.vmap takes its gradient for each element apart, and method={site.method.name!r} "
            "grows by the one of a whole backward: take torch.func.grad of the whole batch's loss, or, if the "
            "gradients are not for training, any of topkast.densify(model); else use another method"
        )


for _name in ("weight", "weight_grad"):
    _one_by_one(_name)
