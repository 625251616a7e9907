"""Reading and writing ``topkast`` nodes in ATen graphs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from topkast.runtime.layout import Geometry
from topkast.runtime.ops import grouped_mm as grouped  # noqa: F401  (define torch.ops.topkast)

aten, topkast = torch.ops.aten, torch.ops.topkast

WEIGHT, WEIGHT_GRAD = topkast.weight.default, topkast.weight_grad.default

# Ops that only move elements. Replayed on a tensor of positions they say themselves where each element goes.
MOVES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default, aten.t.default,
    aten.transpose.int, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.expand.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
    aten.numpy_T.default, aten.mT.default, aten.matrix_H.default, aten.lift_fresh_copy.default,
}  # fmt: skip


# What a node's meta says of its own arguments and value: wrong for any other node.
STALE = ("val", "tensor_meta", "recompute", "eager_input_vals", "arg_kwarg_vals", "refused")


def is_cast(node: Any) -> bool:
    """A change of dtype and of nothing else."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is aten._to_copy.default:
        kept = {"layout": torch.strided, "device": node.args[0].meta["val"].device}  # type: ignore[union-attr]
        return all(key == "dtype" or (key in kept and kept[key] == value) for key, value in node.kwargs.items())
    return node.target is torch.ops.prims.convert_element_type.default


def geometry(node: fx.Node) -> Geometry:
    """The geometry that a ``weight`` or ``weight_grad`` node carries."""
    shape, perm, lead, block = node.args[5:9]
    return Geometry(tuple(shape), tuple(perm), lead, tuple(block))  # type: ignore[arg-type]


RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}


def emit(graph: fx.Graph, target: Callable[..., Any], *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
    """Add a call at the insertion point, with the fake value that later passes read; other meta from ``like``."""
    node = graph.call_function(target, args, kwargs)
    node.meta = {k: v for k, v in like.meta.items() if k not in STALE}
    fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    near = [*node.all_input_nodes, like]  # a random op has no inputs
    mode = next((t.fake_mode for n in near if isinstance(t := n.meta.get("val"), FakeTensor)), None)
    if mode is None:
        node.meta["val"] = target(*fake_args, **fake_kwargs)
    else:
        with mode:
            node.meta["val"] = target(*fake_args, **fake_kwargs)
    return node


def transposed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The node with its last two dims swapped, without stacking a swap on a swap."""
    dims = list(range(node.meta["val"].dim()))
    dims[-2:] = dims[:-3:-1]
    source = node.args[0] if node.args else None
    undone = node.target is aten.permute.default and list(node.args[1]) == dims  # type: ignore[arg-type]
    if undone or (node.target is aten.t.default and len(dims) == 2):
        return source  # type: ignore[return-value]
    return emit(graph, aten.permute.default, node, dims, like=node)


def replay(chain: list[fx.Node], start: Tensor) -> Tensor | None:
    """Apply moves to a tensor; None where a move depends on a symbolic size."""
    for node in chain:
        if len(node.all_input_nodes) > 1:
            return None
        # The positions lie in memory as moved, where the graph may have had a copy: a view may have to be a reshape.
        move = aten.reshape.default if node.target in RESHAPES else node.target
        start = move(start, *node.args[1:])  # type: ignore[operator]
    return start


def source(node: Any) -> tuple[fx.Node | None, list[fx.Node]]:
    """Walk back over moves: where the elements of ``node`` come from, and the moves in order."""
    chain: list[fx.Node] = []
    while isinstance(node, fx.Node) and node.target in MOVES:
        chain.append(node)
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None, chain[::-1]


def positions(shape: tuple[int, ...]) -> Tensor:
    """A tensor in which every element is its own position."""
    count = math.prod(shape)
    kind = torch.int64 if count > 2**31 - 1 else torch.int32
    return torch.arange(count, dtype=kind, device="cpu").view(shape)


def as_matrix(found: Tensor, g: Geometry) -> Tensor:
    """A tensor of the weight's shape as [rows, cols]."""
    return found.permute(g.perm).reshape(g.rows, g.cols)


def weight_operand(node: Any) -> tuple[fx.Node, Tensor] | None:
    """If ``node`` is W_A after moves only: the ``weight`` node, and which position of W each element is."""
    found, chain = source(node)
    if found is None or found.target is not WEIGHT:
        return None
    where = replay(chain, positions(geometry(found).shape))
    return None if where is None else (found, where)


def named(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by their names in the schema, those that are given."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def geometry_of(node: fx.Node) -> Geometry:
    """The geometry of a product's weight."""
    found = named(node)
    return Geometry(tuple(found["shape"]), tuple(found["perm"]), found["lead"], tuple(found["block"]))


def sliced(node: fx.Node) -> tuple[int, int, int] | None:
    """The dimension that a slice cuts, from where and to where; None if it is no slice, or not of neighbours, or at a
    place that is not known."""
    if node.target is not aten.slice.Tensor or len(node.all_input_nodes) > 1:
        return None
    args: Any = node.args
    given = list(args[1:])
    dim, low, high, step = given + [0, 0, None, 1][len(given) :]
    value = args[0].meta["val"]
    dim = dim % value.dim()
    low, high, _ = slice(low, high).indices(value.shape[dim])
    return (dim, low, high) if step == 1 else None


def getitems(node: fx.Node) -> dict[int, fx.Node]:
    """The ``getitem`` users of a node with several outputs."""
    return {user.args[1]: user for user in node.users if user.target is operator.getitem}  # type: ignore[misc]
