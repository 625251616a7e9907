"""The operator of a recurrent layer: equal to torch's layers, with the right gradients, dense and sparse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topkast.runtime.kernels.candidates import candidates
from topkast.runtime.layout import Geometry, build_index
from topkast.runtime.ops import recurrence as _operators  # noqa: F401  (defines torch.ops.topkast.recurrence)
from topkast.runtime.reference.products import weight
from topkast.runtime.reference.recurrent import GATES

T, N, IN, H = 4, 3, 5, 6
LAYERS: dict[str, Any] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


def _states(cell: str) -> tuple[Tensor, Tensor]:
    h, c = (torch.randn(N, H, dtype=torch.float64) for _ in range(2))
    return h, c if cell == "lstm" else c.new_empty(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", GATES)
def test_equals_the_layer_of_torch(cell: str, bias: bool) -> None:
    layer = LAYERS[cell](IN, H, bias=bias).double()
    x, (h, c) = torch.randn(T, N, IN, dtype=torch.float64, requires_grad=True), _states(cell)
    expected, last = layer(x, (h[None], c[None]) if cell == "lstm" else h[None])
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    into, of_hidden, b_in, b_hidden = (getattr(layer, name, None) for name in names)
    found, c_n, _ = torch.ops.topkast.recurrence(F.linear(x, into, b_in), h, c, of_hidden, b_hidden, cell)
    torch.testing.assert_close(found, expected)
    if cell == "lstm":
        torch.testing.assert_close(c_n, last[1][0])
    by, wanted = torch.randn_like(found), [x, *layer.parameters()]
    grads = zip(*(torch.autograd.grad(y, wanted, by) for y in (found, expected)), strict=True)
    for ours, theirs in grads:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cell", GATES)
def test_every_gradient(cell: str) -> None:
    h, c = _states(cell)
    args = [
        torch.randn(T, N, GATES[cell] * H, dtype=torch.float64),
        h,
        *([c] if cell == "lstm" else []),
        torch.randn(GATES[cell] * H, H, dtype=torch.float64),
        torch.randn(GATES[cell] * H, dtype=torch.float64),
    ]

    def both(*given: Tensor) -> tuple[Tensor, ...]:
        gates, h, *rest = given
        cells, (w, b) = rest[:-2], rest[-2:]
        found = torch.ops.topkast.recurrence(gates, h, cells[0] if cells else c, w, b, cell)
        return found[: 1 + len(cells)]

    assert torch.autograd.gradcheck(both, [arg.requires_grad_() for arg in args])


@pytest.mark.parametrize("cell", GATES)
def test_the_sparse_operator_equals_the_dense_operator_with_zeros(cell: str) -> None:
    geometry = Geometry((GATES[cell] * H, H), (0, 1), 1, (1, 1))
    drawn = torch.rand(geometry.grid)
    index = build_index(drawn < 0.3, drawn < 0.5, int((drawn < 0.5).sum()))
    values = torch.randn(index.cols.numel())
    w, key = weight(values, index, geometry), torch.tensor(0)
    h, c = (state.float() for state in _states(cell))
    gates, bias = torch.randn(T, N, GATES[cell] * H), torch.randn(GATES[cell] * H)
    n_fwd = int((drawn < 0.3).sum())
    given = (values, *index, key, geometry.shape, geometry.perm, geometry.lead, geometry.block, n_fwd)
    expected = torch.ops.topkast.recurrence(gates, h, c, w, bias, cell)
    back = (torch.randn_like(expected[0]), torch.randn_like(c), h, c, expected[0], expected[2])
    expected_back = torch.ops.topkast.recurrence_backward(*back, w, cell)
    for impl in candidates("spmm", h, geometry):
        found = torch.ops.topkast.sparse_recurrence(gates, h, c, *given, bias, cell=cell, impl=impl)
        torch.testing.assert_close(found, expected)
        found = torch.ops.topkast.sparse_recurrence_backward(*back, *given, cell=cell, impl=impl)
        torch.testing.assert_close(found, expected_back)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_is_an_operator_as_torch_wants_it(cell: str) -> None:
    gates, (h, c) = torch.randn(T, N, GATES[cell] * H, dtype=torch.float64), _states(cell)
    weight, bias = torch.randn(GATES[cell] * H, H).double(), torch.randn(GATES[cell] * H).double()
    torch.library.opcheck(torch.ops.topkast.recurrence.default, (gates, h, c, weight, bias, cell))
