"""In eager mode a module reads W_A; the read can be differentiated any number of times, also by ``torch.func``.

There are two functions, and each is the derivative of the other. (An operator's own autograd formula cannot do this:
functorch refuses it in reverse mode, and in forward mode functorch takes its tangent as zero.) Compiled graphs hold the
operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkast.runtime.errors import ModelError
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.reference.products import weight
from topkast.runtime.registry import find

from . import operators as ops  # noqa: F401  (defines torch.ops.topkast)


class Read(torch.autograd.Function):
    """W_A from B's values; the gradient is taken at B.

    The arguments are those of ``topkast::weight``, but the geometry is one object, because functorch takes tuples
    apart. In forward mode the derivative is the derivative of W_A itself: values outside A have no effect on W_A.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, *rest: Any) -> Tensor:
        return torch.ops.topkast.weight(values, *rest[:4], *_given(*rest[4:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return Sample.apply(grads[0], *ctx.saved_tensors, *ctx.size), *[None] * 6

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return Read.apply(tangents[0], *ctx.saved_tensors, *ctx.size)


class Sample(torch.autograd.Function):
    """A dense tensor's values at B. The arguments are those of ``topkast::weight_grad``, with the geometry as one
    object."""

    generate_vmap_rule = True

    @staticmethod
    def forward(dense: Tensor, *rest: Any) -> Tensor:
        return torch.ops.topkast.weight_grad(dense, *rest[:4], *_given(*rest[4:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        row_ptr, _, cols, key = ctx.saved_tensors
        # With these arguments, the forward part of a row is the whole row, so all of B is read.
        return Read.apply(grads[0], row_ptr, row_ptr[1:], cols, key, *ctx.size), *[None] * 6

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return Sample.apply(tangents[0], *ctx.saved_tensors, *ctx.size)


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    # Save them as tensors, so that a refresh between forward and backward raises an error, not a wrong gradient.
    ctx.save_for_backward(*inputs[1:5])
    ctx.save_for_forward(*inputs[1:5])
    ctx.size = inputs[5:]


def _given(geometry: Geometry, n_fwd: int) -> tuple[Any, ...]:
    return geometry.shape, geometry.perm, geometry.lead, geometry.block, n_fwd


def _one_by_one(name: str) -> None:
    """Let ``vmap`` run an operator once for each element of the batch. Any argument may have a batch dimension (in an
    ensemble, an index too)."""
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
    """Refuse a method that grows by the single gradient of a backward: it cannot use a batch of gradients."""
    site = find(key)
    if site is not None and site.grows_by_gradient:
        raise ModelError(
            f"{site.name}: torch.func.vmap takes its gradient for each element apart, and "
            f"method={site.grows_by_gradient!r} grows by the one of a whole backward: take torch.func.grad of the "
            "whole batch's loss, or, if the gradients are not for training, any of topkast.densify(model); else use "
            "another method"
        )


for _name in ("weight", "weight_grad"):
    _one_by_one(_name)


@torch.no_grad()
def as_constant(values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """W_A as ``torch.jit.trace`` can hold it: a constant, computed while tracing is switched off."""
    tracing: Any = torch._C
    state = tracing._get_tracing_state()
    tracing._set_tracing_state(None)
    try:
        return weight(values.detach().reshape(-1), index, geometry)
    finally:
        tracing._set_tracing_state(state)
