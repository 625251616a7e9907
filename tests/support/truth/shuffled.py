"""Plain PyTorch whose sums run in a random order: products, convolutions, norms over a batch, gradients of biases.

No order of a sum is the right one, and a program's error in a small tensor is a matter of luck. A few orders of plain
PyTorch's own sums say how large the error of a right program can be, whatever the order that its kernels sum in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Shuffled(TorchDispatchMode):
    """Within it, what is summed is put into another order first, and the result back into its own.

    Args:
        seed: of the orders. Sums of one length have one order: what is computed twice is the same twice.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, change = kwargs or {}, CHANGED.get(op)
        if change is not None:
            return change(self, op, *args, **kwargs)
        return self.in_parts(op, args, kwargs)

    def in_parts(self, op: Any, args: Any, kwargs: Any) -> Any:
        """An operator with no sum of its own: in inference mode layers come whole, elsewhere as their products."""
        with self:
            found = op.decompose(*args, **kwargs)
        return op(*args, **kwargs) if found is NotImplemented else found

    def product(self, op: Any, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, also batched."""
        order = self.order(a.shape[-1])
        return op(a.index_select(-1, order), b.index_select(-2, order))

    def sum_and_product(self, op: Any, start: Tensor, a: Tensor, b: Tensor, **factors: Any) -> Tensor:
        return self.product(lambda a, b: op(start, a, b, **factors), a, b)

    def sum(self, op: Any, x: Tensor, dims: Sequence[int] | None = None, *rest: Any, **options: Any) -> Tensor:
        for dim in dims or range(x.dim()):
            x = x.index_select(dim, self.order(x.shape[dim]))
        return op(x, dims, *rest, **options)

    def _channels(self, x: Tensor, w: Tensor, transposed: bool, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Orders of a convolution's input and output channels, within their groups; the weight in them; the batch's."""
        inside, outside = (w.shape[0] // groups, w.shape[1]) if transposed else (w.shape[1], w.shape[0] // groups)
        into, out = self.order(inside), self.order(outside)
        starts = torch.arange(groups)[:, None]
        ins, outs = (starts * inside + into).flatten(), (starts * outside + out).flatten()
        w = w.index_select(0, ins if transposed else outs).index_select(1, out if transposed else into)
        return ins, outs, w, self.order(x.shape[0])

    def convolution(self, op: Any, x: Tensor, w: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        ins, outs, w, batch = self._channels(x, w, rest[3], rest[5])
        y = op(_at(x, batch, ins), w, None if bias is None else bias.index_select(0, outs), *rest)
        return _at(y, batch.argsort(), outs.argsort())

    def convolution_backward(self, op: Any, dy: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Any, ...]:
        transposed, groups = rest[4], rest[6]
        ins, outs, shuffled, batch = self._channels(x, w, transposed, groups)
        dx, dw, db = op(_at(dy, batch, outs), _at(x, batch, ins), shuffled, *rest)
        if dw is not None:
            rows, columns = (ins, outs) if transposed else (outs, ins)
            # Every group's second axis is in the first group's order.
            dw = _at(dw, rows.argsort(), columns[: w.shape[1]].argsort())
        if db is not None:  # a sum over positions too, and of a batch of one over nothing else
            db = self.sum(aten.sum.dim_IntList, dy, [dim for dim in range(dy.dim()) if dim != 1])
        return None if dx is None else _at(dx, batch.argsort(), ins.argsort()), dw, db

    def layer_norm_backward(
        self, op: Any, dy: Tensor, x: Tensor, shape: Any, mean: Tensor, rstd: Tensor, *rest: Any
    ) -> tuple[Any, ...]:
        """Of weight and bias they are sums over all that stands before the normalized axes."""
        if x.dim() == len(shape):
            return op(dy, x, shape, mean, rstd, *rest)
        order = self.order(x.shape[0])
        dy, x, mean, rstd = (one.index_select(0, order) for one in (dy, x, mean, rstd))
        dx, dw, db = op(dy, x, shape, mean, rstd, *rest)
        return None if dx is None else dx.index_select(0, order.argsort()), dw, db

    def batch_norm(self, op: Any, x: Tensor, *rest: Any) -> tuple[Any, ...]:
        order = self.order(x.shape[0])
        y, *others = op(x.index_select(0, order), *rest)
        return y.index_select(0, order.argsort()), *others

    def batch_norm_backward(self, op: Any, dy: Tensor, x: Tensor, *rest: Any) -> tuple[Any, ...]:
        order = self.order(x.shape[0])
        dx, *others = op(dy.index_select(0, order), x.index_select(0, order), *rest)
        return dx.index_select(0, order.argsort()), *others


def _at(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return x.index_select(0, first).index_select(1, second)


CHANGED: dict[Any, Callable[..., Any]] = {
    aten.mm.default: Shuffled.product,
    aten.bmm.default: Shuffled.product,
    aten.addmm.default: Shuffled.sum_and_product,
    aten.baddbmm.default: Shuffled.sum_and_product,
    aten.sum.dim_IntList: Shuffled.sum,
    aten.convolution.default: Shuffled.convolution,
    aten.convolution_backward.default: Shuffled.convolution_backward,
    aten.native_layer_norm_backward.default: Shuffled.layer_norm_backward,
    aten.native_batch_norm.default: Shuffled.batch_norm,
    aten.native_batch_norm_backward.default: Shuffled.batch_norm_backward,
}
