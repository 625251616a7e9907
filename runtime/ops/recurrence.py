"""The loop of a recurrent layer as one operator, so that a graph does not grow with the length of its sequences.

``recurrence`` takes the weight as a dense tensor and is differentiable; graphs hold ``recurrence`` until the pass
``fuse_recurrent`` finds that the weight is sparse. Then ``sparse_recurrence`` runs the same loop on sparse products.
The gradient of the weight is one product over all steps, an ordinary ``mm`` that other passes make sparse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkast.runtime.kernels.candidates import KERNELS, repeated
from topkast.runtime.layout import Index
from topkast.runtime.reference import recurrent
from topkast.runtime.registry import count_run

from .operators import _SPARSE, _geometry

_LOOP = "Tensor gates, Tensor x, Tensor c"
_BACK = "Tensor grad, Tensor grad_c, Tensor h, Tensor c, Tensor hidden, Tensor saved"
SCHEMAS = {
    "recurrence": f"({_LOOP}, Tensor weight, Tensor? bias, str cell) -> (Tensor, Tensor, Tensor)",
    "recurrence_backward": f"({_BACK}, Tensor weight, str cell) -> (Tensor, Tensor, Tensor)",
    "sparse_recurrence": f"({_LOOP}, {_SPARSE}, Tensor? bias=None, str cell='', str impl='reference') "
    "-> (Tensor, Tensor, Tensor)",
    "sparse_recurrence_backward": f"({_BACK}, {_SPARSE}, str cell='', str impl='reference') "
    "-> (Tensor, Tensor, Tensor)",
}
_library = torch.library.Library("topkast", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def recurrence(gates, x, c, weight, bias, cell):
    """All steps of a layer: see :func:`topkast.runtime.reference.recurrent.forward`. x: the first hidden state."""
    return recurrent.forward(cell, gates, x, c, lambda h: h @ weight.mT, bias)


def recurrence_backward(grad, grad_c, h, c, hidden, saved, weight, cell):
    """Gradients of all steps: see :func:`topkast.runtime.reference.recurrent.backward`."""
    return recurrent.backward(cell, grad, grad_c, h, c, hidden, saved, lambda dy: dy @ weight)


def sparse_recurrence(
    gates,
    x,
    c,
    values,
    row_ptr,
    row_fwd,
    cols,
    key,
    shape,
    perm,
    lead,
    block,
    n_fwd,
    bias=None,
    cell="",
    impl="reference",
):
    """``recurrence`` with W_A."""
    count_run(key, "forward", impl)
    product = repeated(impl, "spmm", values, Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block))
    return recurrent.forward(cell, gates, x, c, product, bias)


def sparse_recurrence_backward(
    grad,
    grad_c,
    h,
    c,
    hidden,
    saved,
    values,
    row_ptr,
    row_fwd,
    cols,
    key,
    shape,
    perm,
    lead,
    block,
    n_fwd,
    cell="",
    impl="reference",
):
    """``recurrence_backward`` with W_A."""
    count_run(key, "input gradient", impl)
    product = repeated(impl, "spmm_t", values, Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block))
    return recurrent.backward(cell, grad, grad_c, h, c, hidden, saved, product)


def _fake_recurrence(gates, x, c, weight, bias, cell):
    hidden = gates.new_empty(*gates.shape[:2], x.shape[1])
    saved = gates.new_empty(*gates.shape[:2], recurrent.SAVED[cell] * x.shape[1])
    return hidden, c.new_empty(c.shape), saved


def _fake_recurrence_backward(grad, grad_c, h, c, hidden, saved, weight, cell):
    dgates = grad.new_empty(*grad.shape[:2], recurrent.GATES[cell] * h.shape[1])
    return dgates, h.new_empty(h.shape), c.new_empty(c.shape)


def _fake_sparse_recurrence(gates, x, c, *rest, **options):
    return _fake_recurrence(gates, x, c, None, None, _cell_among(rest, options))


def _fake_sparse_recurrence_backward(grad, grad_c, h, c, hidden, saved, *rest, **options):
    cell = _cell_among(rest, options)
    return _fake_recurrence_backward(grad, grad_c, h, c, hidden, saved, None, cell)


def _cell_among(rest: tuple[Any, ...], options: dict[str, Any]) -> str:
    """``cell``, which a graph may hold by position or by name."""
    return options["cell"] if "cell" in options else rest[-2] if rest[-1] in KERNELS else rest[-1]


for _name in SCHEMAS:
    _library.impl(_name, globals()[_name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"topkast::{_name}", globals()[f"_fake_{_name}"], lib=_library)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, h, c, weight, bias, ctx.cell = inputs
    hidden, _, saved = output
    ctx.save_for_backward(h, c, weight, hidden, saved)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor, grad_c: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    h, c, weight, hidden, saved = ctx.saved_tensors
    dgates, dh, dc = torch.ops.topkast.recurrence_backward(grad, grad_c, h, c, hidden, saved, weight, ctx.cell)
    dy = recurrent.of_hidden(ctx.cell, dgates, saved).flatten(0, 1)
    before = torch.cat([h[None], hidden[:-1]]).flatten(0, 1)
    return dgates, dh, dc, dy.mT @ before, dy.sum(0) if ctx.has_bias else None, None


torch.library.register_autograd("topkast::recurrence", _backward, setup_context=_save, lib=_library)
