"""meProp and SWAT as plain PyTorch, for the study: they save work in the backward, not memory, and run dense here.

Both act on the layers whose weights topkast would make sparse.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast


def largest(x: Tensor, share: float) -> Tensor:
    """``x`` with the largest ``share`` of every row by size, zero elsewhere. x: [rows, n]."""
    kept = x.abs().topk(max(1, round(share * x.shape[1])), dim=1).indices
    return torch.zeros_like(x).scatter_(1, kept, x.gather(1, kept))


class SparseGradient(torch.autograd.Function):
    """meProp (Sun et al. 2017): of the gradient of an output only the largest of every example go back."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, share: float, image: bool) -> Tensor:
        ctx.share, ctx.image = share, image
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows = grads[0].flatten(1) if ctx.image else grads[0].flatten(0, -2)
        return largest(rows, ctx.share).view_as(grads[0]), None, None


class SparseOperands(torch.autograd.Function):
    """SWAT (Raihan and Aamodt 2020): forward and input gradient at the largest weights, weight gradient from the
    largest activations, and every weight is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, product: Callable, fwd: float, activations: float) -> Tensor:
        kept = largest(weight.reshape(1, -1), 1 - fwd).view_as(weight)
        ctx.product = product
        ctx.save_for_backward(largest(x.reshape(1, -1), activations).view_as(x), kept)
        return product(x, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        with torch.enable_grad():
            x, weight = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
            # The product is linear in each: its input gradient depends on the weight alone, and the other way round.
            found = torch.autograd.grad(ctx.product(x, weight), (x, weight), grads[0])
        return found[0], found[1], None, None, None


def layers_of(model: nn.Module, **options: Any) -> list[nn.Linear | nn.Conv2d]:
    """The layers of ``model`` whose weights topkast makes sparse."""
    twin = topkast.sparsify(copy.deepcopy(model), **options)
    found = [model.get_submodule(name.rpartition(".")[0]) for name in topkast.masks(twin)]
    assert all(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in found)
    return found  # type: ignore[return-value]


def meprop(model: nn.Module, share: float) -> nn.Module:
    """``model``, trained as meProp says, in place."""
    for layer in layers_of(model):
        image = isinstance(layer, nn.Conv2d)
        layer.register_forward_hook(lambda _, args, y, image=image: SparseGradient.apply(y, share, image))
    return model


def swat(model: nn.Module, fwd: float, activations: float) -> nn.Module:
    """``model``, trained as SWAT says, in place."""
    for layer in layers_of(model):
        layer.forward = _swat_forward(layer, fwd, activations)  # type: ignore[method-assign]
    return model


def _swat_forward(layer: nn.Linear | nn.Conv2d, fwd: float, activations: float) -> Callable[..., Tensor]:
    def product(x: Tensor, weight: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight)
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(x: Tensor) -> Tensor:
        y = SparseOperands.apply(x, layer.weight, product, fwd, activations)
        if layer.bias is None:
            return y
        return y + (layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None])

    return forward
