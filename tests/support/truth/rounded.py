"""Plain PyTorch whose sums are off by a random share of what a right sum in the same precision may be off by.

A sum of n terms, in any order and with or without fused products, is off by about sqrt(n) * u * (the sum of the terms'
sizes), and never by more than n times u; u is half of the precision's eps (Higham and Mary, "A new approach to
probabilistic rounding error analysis", SIAM J. Sci. Comput. 2019). The error of one order that really runs may be far
below: a bias of three numbers may be right to the last bit by luck, and no other right program then is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .shuffled import Shuffled

aten = torch.ops.aten
SUMS = (
    *(aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default),
    *(aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim),
    *(aten.convolution.default, aten.convolution_backward.default),
)
MEANS = (aten.mean.default, aten.mean.dim)


class Rounded(Shuffled):
    """Within it, each sum is moved by a random share of its bound.

    Args:
        seed: of the shares. Results of one size have the same shares: what is computed twice is the same twice.
    """

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op not in SUMS:
            return self.in_parts(op, args, kwargs)
        found = op(*args, **kwargs)
        sizes = op(*tree_map_only(Tensor, torch.abs, args), **kwargs)
        counts = op(*tree_map_only(Tensor, torch.ones_like, args), **kwargs)
        if op in MEANS:
            counts = counts * (args[0].numel() / counts.numel())
        if isinstance(found, Tensor):
            return self.moved(found, sizes, counts)
        return tuple(None if one[0] is None else self.moved(*one) for one in zip(found, sizes, counts, strict=True))

    def moved(self, found: Tensor, sizes: Tensor, counts: Tensor) -> Tensor:
        """A result by its bound: sums of bfloat16 run in float32, and the result is rounded once more."""
        if not found.is_floating_point():
            return found
        wide = torch.promote_types(found.dtype, torch.float32)
        sums = counts.to(wide).sqrt() * sizes.to(wide) * (torch.finfo(wide).eps / 2)
        once = found.to(wide).abs() * (torch.finfo(found.dtype).eps / 2)
        generator = torch.Generator(found.device).manual_seed(self.seed)
        share = torch.rand(found.shape, generator=generator, dtype=wide, device=found.device) * 2 - 1
        return (found.to(wide) + share * (sums + once)).to(found.dtype)
