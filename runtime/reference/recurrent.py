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
SAVED = {"lstm": 5, "gru": 4, "tanh": 0, "relu": 0}  # units that a step keeps for its backward, in multiples of H


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
    for t in range(steps):
        own = product(h) if bias is None else product(h) + bias
        h, c = _STEP[cell](gates[t], own, h, c, saved[t])
        hidden[t] = h
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
    dh, dc, parts = torch.zeros_like(h), grad_c, []
    for t in reversed(range(grad.shape[0])):
        before = hidden[t - 1] if t else h
        units = list(saved[t].split(h.shape[1], 1)) if saved.shape[2] else []
        cell_before = (saved[t - 1, :, -h.shape[1] :] if t else c) if cell == "lstm" else c
        dgates, dh, dc = _STEP_BACK[cell](grad[t] + dh, dc, before, hidden[t], cell_before, units)
        dh = dh + product_t(of_hidden(cell, dgates, saved[t]))
        parts.append(dgates)
    return torch.stack(parts[::-1]), dh, dc.clone()


def of_hidden(cell: str, dgates: Tensor, saved: Tensor) -> Tensor:
    """The gradient of the product with the weight, from the gradient of ``gates``. They differ for a GRU only, whose
    reset gate lies between."""
    if cell != "gru":
        return dgates
    width = dgates.shape[-1] // 3
    others, new = dgates.split([2 * width, width], -1)
    return torch.cat([others, new * saved[..., :width]], -1)


def _lstm(gates: Tensor, own: Tensor, h: Tensor, c: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (gates + own).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    torch.cat([i, f, g, o, c], 1, out=saved)
    return o * c.tanh(), c


def _lstm_back(dh, dc, before, h, cell_before, units):
    i, f, g, o, c = units
    t = c.tanh()
    dc = dc + dh * o * (1 - t * t)
    di, df, dg = dc * g * i * (1 - i), dc * cell_before * f * (1 - f), dc * i * (1 - g * g)
    return torch.cat([di, df, dg, dh * t * o * (1 - o)], 1), torch.zeros_like(dh), dc * f


def _gru(gates: Tensor, own: Tensor, h: Tensor, c: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
    (r, z, n), (own_r, own_z, own_n) = gates.chunk(3, 1), own.chunk(3, 1)
    r, z = (r + own_r).sigmoid(), (z + own_z).sigmoid()
    n = (n + own_n * r).tanh()
    torch.cat([r, z, n, own_n], 1, out=saved)
    return (h - n) * z + n, c


def _gru_back(dh, dc, before, h, cell_before, units):
    r, z, n, own_n = units
    dn = dh * (1 - z) * (1 - n * n)
    return torch.cat([dn * own_n * r * (1 - r), dh * (before - n) * z * (1 - z), dn], 1), dh * z, dc


def _tanh_back(dh, dc, before, h, cell_before, units):
    return dh * (1 - h * h), torch.zeros_like(dh), dc


def _relu_back(dh, dc, before, h, cell_before, units):
    return torch.where(h > 0, dh, 0), torch.zeros_like(dh), dc


_STEP: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "lstm": _lstm,
    "gru": _gru,
    "tanh": lambda gates, own, h, c, saved: ((gates + own).tanh(), c),
    "relu": lambda gates, own, h, c, saved: ((gates + own).relu(), c),
}
_STEP_BACK: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "lstm": _lstm_back,
    "gru": _gru_back,
    "tanh": _tanh_back,
    "relu": _relu_back,
}
