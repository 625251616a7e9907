"""The specification of a recurrent layer: its steps in time, forward and backward, for four kinds of cells.

A step multiplies the hidden state with the weight W [G * H, H] (G gates of H units), adds the inputs' part, and applies
the cell. The inputs' part, ``gates`` [T, N, G * H], is a product over all steps at once and not part of the loop. Only
what must be a loop is here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]

GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}
SAVED = {"lstm": 6, "gru": 4, "tanh": 0, "relu": 0}  # units that a step keeps for its backward, in multiples of H


def forward(
    cell: str, gates: Tensor, h: Tensor, c: Tensor, product: Product, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run all steps.

    Args:
        cell: a key of :data:`GATES`.
        gates: the inputs' part, [T, N, G * H].
        h, c: the first hidden state [N, H], and the first cell state of an LSTM (an empty tensor for others).
        product: x [N, H] -> x W^T [N, G * H].
        bias: added to the product, [G * H].

    Returns:
        All hidden states [T, N, H], the last cell state, and what the backward needs.
    """
    steps, n, width = *gates.shape[:2], h.shape[1]
    hidden, saved = gates.new_empty(steps, n, width), gates.new_empty(steps, n, SAVED[cell] * width)
    if bias is not None and cell != "gru":  # a GRU's reset gate lies between
        gates, bias = gates + bias, None
    kept = _views(saved, width, _WRITTEN[cell])
    for given, units, out in zip(gates.unbind(0), kept, hidden.unbind(0), strict=True):
        own = product(h) if bias is None else product(h) + bias
        h, c = _STEP[cell](given, own, h, c, units, out)
    return hidden, c.clone(), saved


def backward(
    cell: str, grad: Tensor, grad_c: Tensor, h: Tensor, c: Tensor, hidden: Tensor, saved: Tensor, product_t: Product
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of all steps.

    Args:
        cell: a key of :data:`GATES`.
        grad, grad_c: gradients of all hidden states [T, N, H], and of the last cell state.
        h, c: the first states, as in :func:`forward`.
        hidden, saved: results of :func:`forward`.
        product_t: dy [N, G * H] -> dy W [N, H].

    Returns:
        The gradients of ``gates``, of ``h`` and of ``c``.
    """
    dh, dc = torch.zeros_like(h), grad_c
    dgates = grad.new_empty(*grad.shape[:2], GATES[cell] * h.shape[1])
    kept = _views(saved, h.shape[1], _single(SAVED[cell]))
    parts = _views(dgates, h.shape[1], _single(GATES[cell]))
    grads, states, outs = grad.unbind(0), hidden.unbind(0), dgates.unbind(0)
    for t in reversed(range(len(grads))):
        before = states[t - 1] if t else h
        cell_before = (kept[t - 1][4] if t else c) if cell == "lstm" else c
        dh, dc = _STEP_BACK[cell](grads[t] + dh, dc, before, states[t], cell_before, kept[t], parts[t])
        dh = dh + product_t(of_hidden(cell, outs[t], saved[t] if cell == "gru" else saved))
    return dgates, dh, dc.clone()


def of_hidden(cell: str, dgates: Tensor, saved: Tensor) -> Tensor:
    """The gradient of the product with the weight, from the gradient of ``gates``. They differ for a GRU only, whose
    reset gate lies between."""
    if cell != "gru":
        return dgates
    width = dgates.shape[-1] // 3
    others, new = dgates.split([2 * width, width], -1)
    return torch.cat([others, new * saved[..., :width]], -1)


# A step writes to the tensors of all steps. With results of their own and a copy of them, an LSTM of width 200 made 13
# small operations in a step forward and 26 backward, and was slower than oneDNN's dense layer.


Units = tuple[Tensor, ...]


def _single(count: int) -> list[tuple[int, int]]:
    return [(at, at + 1) for at in range(count)]


# What a step writes of ``saved``, in multiples of H: each part by itself, then parts together.
_WRITTEN = {"lstm": [*_single(6), (0, 2), (0, 4)], "gru": [*_single(4), (0, 2)], "tanh": [], "relu": []}


def _views(tensor: Tensor, width: int, spans: list[tuple[int, int]]) -> list[Units]:
    """For each step the parts of a tensor [T, N, k * width], all made at once: a view made in a step cost 5 µs."""
    every = [tensor[..., start * width : end * width].unbind(0) for start, end in spans]
    return list(zip(*every, strict=True)) if every else [()] * tensor.shape[0]


def _lstm(gates: Tensor, own: Tensor, h: Tensor, c: Tensor, units: Units, out: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o, new, t, both, four = units
    torch.add(gates, own, out=four)
    both.sigmoid_()
    g.tanh_()
    o.sigmoid_()
    torch.mul(f, c, out=new).addcmul_(i, g)
    torch.tanh(new, out=t)
    return torch.mul(o, t, out=out), new


def _lstm_back(dh, dc, before, h, cell_before, units, out):
    i, f, g, o, _, t = units
    di, df, dg, do = out
    dc = dc + _of_tanh(dh * o, t)
    _of_sigmoid(dc * g, i, grad_input=di)
    _of_sigmoid(dc * cell_before, f, grad_input=df)
    _of_tanh(dc * i, g, grad_input=dg)
    _of_sigmoid(dh * t, o, grad_input=do)
    return torch.zeros_like(dh), dc * f


def _gru(gates: Tensor, own: Tensor, h: Tensor, c: Tensor, units: Units, out: Tensor) -> tuple[Tensor, Tensor]:
    r, z, n, kept, both = units
    width = h.shape[1]
    torch.add(gates[:, : 2 * width], own[:, : 2 * width], out=both).sigmoid_()
    kept.copy_(own[:, 2 * width :])
    torch.addcmul(gates[:, 2 * width :], kept, r, out=n).tanh_()
    torch.sub(h, n, out=out).mul_(z).add_(n)
    return out, c


def _gru_back(dh, dc, before, h, cell_before, units, out):
    r, z, n, own_n = units
    dr, dz, dn = out
    dbefore = dh * z
    _of_tanh(dh - dbefore, n, grad_input=dn)  # as autograd takes (h - n) * z + n apart: the same rounding
    _of_sigmoid(dn * own_n, r, grad_input=dr)
    _of_sigmoid(dh * (before - n), z, grad_input=dz)
    return dbefore, dc


def _tanh_back(dh, dc, before, h, cell_before, units, out):
    _of_tanh(dh, h, grad_input=out[0])
    return torch.zeros_like(dh), dc


def _relu_back(dh, dc, before, h, cell_before, units, out):
    out[0].copy_(torch.where(h > 0, dh, 0))
    return torch.zeros_like(dh), dc


def _of_tanh(grad: Tensor, result: Tensor, grad_input: Tensor | None = None) -> Tensor:
    given = (grad, result)
    if grad_input is None:
        return torch.ops.aten.tanh_backward(*given)
    return torch.ops.aten.tanh_backward.grad_input(*given, grad_input=grad_input)


def _of_sigmoid(grad: Tensor, result: Tensor, grad_input: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward.grad_input(grad, result, grad_input=grad_input)


_STEP: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "lstm": _lstm,
    "gru": _gru,
    "tanh": lambda gates, own, h, c, units, out: (torch.add(gates, own, out=out).tanh_(), c),
    "relu": lambda gates, own, h, c, units, out: (torch.add(gates, own, out=out).relu_(), c),
}
_STEP_BACK: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "lstm": _lstm_back,
    "gru": _gru_back,
    "tanh": _tanh_back,
    "relu": _relu_back,
}
