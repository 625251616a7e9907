"""Activations in bfloat16 as operators: after a product while its result is in the cache, and their gradients.

``spmm_activate`` gives Y = X W_A^T + bias and act(Y), ``spmm_t_activate_grad`` dY W_A times act' at ``before``. Like
the products, they are not differentiable: they occur only in graphs that passes rewrote after differentiation.
"""

from __future__ import annotations

import torch

from topkast.runtime.kernels import activations
from topkast.runtime.layout import Index
from topkast.runtime.registry import count_run

from .operators import _SPARSE, _geometry

SCHEMAS = {
    "spmm_activate": f"(Tensor x, {_SPARSE}, Tensor? bias, str act) -> (Tensor, Tensor)",
    "spmm_t_activate_grad": f"(Tensor dy, Tensor before, {_SPARSE}, str act) -> Tensor",
    "activate_grad": "(Tensor dy, Tensor x, str act) -> Tensor",
}
_library = torch.library.Library("topkast", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def spmm_activate(x, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, bias, act):
    count_run(key, "forward", activations.KERNEL)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    return activations.spmm_activate(x, values, index, geometry, bias, act)


def spmm_t_activate_grad(dy, before, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, act):
    count_run(key, "input gradient", activations.KERNEL)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    return activations.spmm_t_activate_grad(dy, before, values, index, geometry, act)


def activate_grad(dy, x, act):
    return activations.activate_grad(dy, x, act)


def _fake_spmm_activate(x, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, bias, act):
    size = x.shape[0], _geometry(shape, perm, lead, block).rows
    return x.new_empty(size), x.new_empty(size)


def _fake_spmm_t_activate_grad(dy, before, *rest):
    return before.new_empty(before.shape)


def _fake_activate_grad(dy, x, act):
    return x.new_empty(x.shape)


for _name in SCHEMAS:
    _library.impl(_name, globals()[_name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"topkast::{_name}", globals()[f"_fake_{_name}"], lib=_library)
