"""Modules whose weight is a view of a parameter, and one step of them, ours beside plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast
from topkast.tests.support.truth.budget import assert_budget
from topkast.tests.support.truth.lockstep import dense_slots, sites_of, without_onednn
from topkast.tests.support.truth.oracle import MaskedWeight

Move = tuple[Any, ...]  # a method of Tensor and its arguments; "part" takes the first half along a dim
USES: dict[str, Callable[..., Tensor]] = {
    "linear": F.linear,
    "x @ w": torch.matmul,
    **{f"conv{d}": getattr(F, f"conv{d}d") for d in (1, 2, 3)},
    **{f"transposed{d}": getattr(F, f"conv_transpose{d}d") for d in (1, 2, 3)},
}


def moved(tensor: Tensor, moves: tuple[Move, ...]) -> Tensor:
    for name, *args in moves:
        tensor = tensor.chunk(2, *args)[0] if name == "part" else getattr(tensor, name)(*args)
    return tensor


class View(nn.Module):
    """A product of an input that went through moves with a parameter that did.

    Args:
        shape, moves: of the parameter.
        use: a key of ``USES``.
        x_moves: of the input.
        result: of the product's result.
        options: of the product.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        moves: tuple[Move, ...],
        use: str,
        x_moves: tuple[Move, ...] = (),
        result: tuple[Move, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape) / 4)
        self.moves, self.x_moves, self.result, self.use, self.options = moves, x_moves, result, use, options
        self.cut: Tensor | None = None  # of plain PyTorch: a mask, the product is summed up in two parts

    def forward(self, x: Tensor) -> Tensor:
        x = moved(x, self.x_moves)
        weights = [self.w] if self.cut is None else [self.w * self.cut, self.w * ~self.cut]
        y = sum(USES[self.use](x, moved(w, self.moves), **self.options) for w in weights)
        return moved(y, self.result)


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the input's gradient; the parameter's stays in ``.grad``."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    # A plain sum goes back as it is, in strides of 0.
    (y if y.dim() == 0 else y.sum()).backward()
    assert x.grad is not None
    return y.detach(), x.grad


def masked(
    model: View, x: Tensor, theta: Tensor, sets: tuple[Tensor, Tensor], dtype: torch.dtype, cut: Tensor | None = None
) -> list[Tensor]:
    """Result, input gradient and weight gradient of plain PyTorch."""
    twin, theta = copy.deepcopy(model), theta.to(dtype).requires_grad_()
    del twin.w
    twin.cut = cut
    twin.w = MaskedWeight.apply(theta, *sets, None, "w")
    found = step(twin, x.to(dtype))
    assert theta.grad is not None
    return [*found, theta.grad]


def check(model: View, x: Tensor, block: tuple[int, int], where: str, backend: str = "aot_eager") -> dict[str, Any]:
    """Compare one step with plain PyTorch's; returns the site's row of the report."""
    options: dict[str, Any] = {"fwd": 0.5, "bwd": 0.3, "min_size": 1, "include": "w", "balanced": False}
    given = copy.deepcopy(model)
    ours = topkast.compile(given, **options, block=block, backend=backend, example_inputs=(x,))
    (site,), sets = sites_of(ours).values(), topkast.masks(ours)["w"]
    theta = topkast.dense_state_dict(ours, "all")["w"]
    result, x_grad = step(ours, x)
    assert site.original.grad is not None
    mine = [result, x_grad, dense_slots(site, site.original.grad, sets[1])]
    truth, oracle = (masked(model, x, theta, sets, dtype) for dtype in (torch.float64, torch.float32))
    # One order of sums may be right by luck, in tensors as small as these.
    twins = [masked(model, x, theta, sets, torch.float32, torch.rand(theta.shape) < 0.5) for _ in range(3)]
    with without_onednn():
        twins += [masked(model, x, theta, sets, torch.float32)]
    for name, *found in zip(("result", "input gradient", "weight gradient"), mine, oracle, truth, *twins, strict=True):
        assert_budget(found[0], found[1], found[2], f"{where}: {name}", found[3:])
    row: dict[str, Any] = topkast.report(ours).sites[0]
    return row
