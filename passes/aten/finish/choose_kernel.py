"""Give every sparse product the kernel that runs it: the fastest, as the planner measured.

before: spmm(x, values, ...)
after:  spmm(x, values, ..., impl="native")
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import topkast
from topkast.passes.aten.weight_call import WeightCall
from topkast.runtime.kernels.candidates import DENSE, PRODUCTS, candidates, native_conv_refusal
from topkast.runtime.planner import plan as planner
from topkast.runtime.reference.products import ConvArgs

_PRODUCT_NAMES = {getattr(topkast, product).default: product for product in PRODUCTS}
# A recurrent layer runs one of these products for each step.
_REPEATED: dict[Any, str] = {
    topkast.sparse_recurrence.default: "spmm",
    topkast.sparse_recurrence_backward.default: "spmm_t",
}


def _in_example(sizes: Sequence[Any]) -> tuple[int, ...]:
    """Sizes; the value of a symbolic size is that of the example that is being compiled."""
    return tuple(size if isinstance(size, int) else int(size.node.hint) for size in sizes)


def _layout(value: Tensor) -> planner.Layout:
    """Shape and strides for the planner. A symbolic size of a contiguous value becomes the next power of two, so that
    one plan serves a class of sizes, whichever of them is compiled first."""
    shape, strides = _in_example(value.shape), _in_example(value.stride())
    if strides != _contiguous(shape):
        return shape, strides
    rounded = tuple(_rounded(size) for size in value.shape)
    return rounded, _contiguous(rounded)


def _rounded(size: Any) -> int:
    (now,) = _in_example([size])
    return now if isinstance(size, int) else 1 << (now - 1).bit_length()


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))


def _conv_args(call: WeightCall) -> ConvArgs | None:
    """The arguments of a convolution; None if the product is none."""
    options = call.options
    return ConvArgs(*(options[name] for name in ConvArgs._fields)) if "stride" in options else None


def _runs(node: fx.Node) -> int:
    if node.target not in _REPEATED:
        return 1
    whole = next(iter(WeightCall.of(node).operands.values()))  # ``gates`` or ``grad``, one row of all for each step
    return _in_example(whole.meta["val"].shape[:1])[0]


def problem(node: fx.Node) -> planner.Problem:
    """A product as the planner measures and remembers it."""
    call = WeightCall.of(node)
    repeated = _REPEATED.get(node.target)
    operands = [operand.meta["val"] for operand in call.activations]
    layouts = tuple(_layout(operand) for operand in operands)
    if repeated is not None:
        operands = [state := call.operands["x" if repeated == "spmm" else "h"].meta["val"]]
        width = call.geometry.cols if repeated == "spmm" else call.geometry.rows
        layouts = (((_rounded(state.shape[0]), width), (width, 1)),)
    return planner.Problem(
        repeated or _PRODUCT_NAMES[node.target],
        layouts,
        operands[0].dtype,
        call.geometry,
        call.n_fwd,
        call.slots,
        torch.get_num_threads(),
        operands[0].device,
        _conv_args(call),
        repeated=repeated is not None,
    )


def problems(graph: fx.Graph) -> list[tuple[planner.Problem, int, fx.Node]]:
    """Every sparse product of a graph, how often the product runs in a call of the graph, and its site's key."""
    every = [node for node in graph.nodes if node.target in {**_REPEATED, **_PRODUCT_NAMES}]
    return [(problem(node), _runs(node), WeightCall.of(node).key) for node in every]


_observers: list[list[tuple[planner.Problem, int]]] = []


@contextlib.contextmanager
def observed() -> Iterator[list[tuple[planner.Problem, int]]]:
    """Inside the ``with``, a list gets every product of the graphs that are compiled, and how often the product runs in
    a call of the graph: once, or once for each step of a recurrent layer."""
    found: list[tuple[planner.Problem, int]] = []
    _observers.append(found)
    try:
        yield found
    finally:
        _observers.remove(found)


def is_observed() -> bool:
    """Whether this runs inside :func:`observed`."""
    return bool(_observers)


class ChooseKernel(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            product = _REPEATED.get(node.target) or _PRODUCT_NAMES.get(node.target)
            if product is None:
                continue
            kernel = self._kernel(product, node)
            for found in _observers:
                found.append((problem(node), _runs(node)))
            node.kwargs = {**node.kwargs, "impl": kernel}
            self.matched(kernel)

    def _kernel(self, product: str, node: fx.Node) -> str:
        call = WeightCall.of(node)
        operand = next(iter(call.activations or call.operands.values())).meta["val"]
        if node.target in _REPEATED:
            operand = operand[0]  # one step's; ``gates`` and ``grad`` hold all steps
        conv = _conv_args(call)
        fitting = candidates(product, operand, call.geometry, conv)
        if fitting[0] in DENSE:  # no sparse kernel fits: the dense product, in its fastest form
            why = None if conv is None else native_conv_refusal(operand, call.geometry, conv)
            if why is not None:
                self.refusals[f"native kernel: {why}"] += 1
            return planner.setting() if planner.setting() in fitting else fitting[0]
        return planner.choose(problem(node))
