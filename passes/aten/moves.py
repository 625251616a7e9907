"""Ops that only move elements, and where they take each element.

A tensor in which every element is its own position goes through the same ops. The result says which element of the
source lies at each place, whatever the ops were.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from .nodes import aten, emit

MOVES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default, aten.t.default,
    aten.transpose.int, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.expand.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
    aten.numpy_T.default, aten.mT.default, aten.matrix_H.default, aten.lift_fresh_copy.default,
}  # fmt: skip
RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}


def walk_back(node: Any) -> tuple[fx.Node | None, list[fx.Node]]:
    """The node that the elements of ``node`` come from, and the moves from there to ``node`` in order.

    The first is None if ``node`` is no node, as an argument that is a number.
    """
    moves: list[fx.Node] = []
    while isinstance(node, fx.Node) and node.target in MOVES:
        moves.append(node)
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None, moves[::-1]


def positions(shape: tuple[int, ...]) -> Tensor:
    """A tensor in which every element is its own position. Nobody may write to the tensor.

    Tensors of one run of the passes share memory. So ``torch.equal`` of two that moved alike compares no element: the
    comparisons took 1.9 s of the 4.7 s that :func:`topkast.estimate` traced a BERT-base.
    """
    count = math.prod(shape)
    if count > 2**31 - 1:
        return torch.arange(count, device="cpu").view(shape)
    longest = _longest[0] if _longest else None
    if longest is None or longest.numel() < count:
        _longest[:] = [longest := torch.arange(count, dtype=torch.int32, device="cpu")]
    return longest[:count].view(shape)


_longest: list[Tensor] = []


def free_positions() -> None:
    """Free the memory that :func:`positions` keeps."""
    _longest.clear()


def replay(moves: list[fx.Node], tensor: Tensor) -> Tensor | None:
    """Apply moves to a tensor; None if a move depends on a symbolic size."""
    for node in moves:
        if len(node.all_input_nodes) > 1:
            return None
        # The positions lie in memory as moved, while the graph may have had a copy: a view may have to be a reshape.
        move = aten.reshape.default if node.target in RESHAPES else node.target
        tensor = move(tensor, *node.args[1:])  # type: ignore[operator]
    return tensor


def move_alike(graph: fx.Graph, moves: list[fx.Node], node: fx.Node) -> fx.Node:
    """Add the same moves of another node at the insertion point, and return the result of the last move."""
    for move in moves:
        node = emit(graph, move.target, node, *move.args[1:], like=move, **move.kwargs)  # type: ignore[arg-type]
    return node


def slice_limits(node: fx.Node) -> tuple[int, int, int] | None:
    """The dimension that a slice cuts, where the slice starts and where it stops.

    None if ``node`` is no slice, takes steps, or cuts at a place that is no number.
    """
    if node.target is not aten.slice.Tensor or len(node.all_input_nodes) > 1:
        return None
    args: Any = node.args
    whole, *given = args
    dim, low, high, step = given + [0, 0, None, 1][len(given) :]
    value = whole.meta["val"]
    dim = dim % value.dim()
    low, high, _ = slice(low, high).indices(value.shape[dim])
    return (dim, low, high) if step == 1 else None
