"""Cut equal blocks out of a captured graph, so that tracing a deep model costs as much as tracing three of its blocks.

If a run of nodes is followed by equal runs, the first, the second and the last stay. The second stands for all between.
The first and the last stay for their surroundings: the input of the first may need no gradient, and other nodes read
the last. Two runs are equal if their nodes have equal operators, shapes and constants, and read nodes as far back, the
same node, or inputs of one kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_flatten

from topkast.compiler.capture.op_table import example

FEWEST = 4  # blocks; of three, none could go
Kind = Callable[[fx.Node], Hashable]


def fold_repeats(graph: fx.Graph, kinds: Mapping[fx.Node, Hashable], sparse: set[fx.Node]) -> dict[fx.Node, int]:
    """Fold each run of equal blocks.

    Args:
        graph: is changed in place. Its placeholders come first.
        kinds: for each placeholder that is a parameter, what decides about the products with it.
        sparse: those that would become sparse. A block that shares such a weight with another block is not folded.

    Returns:
        For each sparse parameter of a block that stands for others: for how many blocks.
    """
    times: dict[fx.Node, int] = {}
    for period in _periods(graph, kinds, sparse):
        nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
        at = {node: i for i, node in enumerate(nodes)}
        equal = [_equal(a, b, at, period, kinds, sparse) for a, b in zip(nodes, nodes[period:], strict=False)]
        for start, length in reversed(_stretches(equal)):
            count = length // period + 1
            blocks = [nodes[start + k * period : start + (k + 1) * period] for k in range(count)]
            if count >= FEWEST and _cut(graph, blocks):
                read = {source for node in blocks[1] for source in node.all_input_nodes if source in sparse}
                times |= {source: times.get(source, 1) * (count - 2) for source in read}
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users:
            graph.erase_node(node)
    return times


def _periods(graph: fx.Graph, kinds: Mapping[fx.Node, Hashable], sparse: set[fx.Node]) -> list[int]:
    """Distances between nodes that read sparse weights of one kind, the shortest first."""
    body = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    last: dict[Hashable, int] = {}
    found: Counter[int] = Counter()
    for i, node in enumerate(body):
        for source in node.all_input_nodes:
            if source in sparse:
                key = (str(node.target), kinds[source])
                found.update([i - last[key]] if key in last else [])
                last[key] = i
    return sorted(period for period, often in found.items() if period > 0 and often >= FEWEST - 2)


def _equal(
    a: fx.Node, b: fx.Node, at: Mapping[fx.Node, int], period: int, kinds: Mapping[fx.Node, Hashable], sparse: set[Any]
) -> bool:
    if a.op != b.op or a.target != b.target or _value(a) != _value(b):
        return False
    ours, theirs = (tree_flatten((node.args, node.kwargs)) for node in (a, b))
    return ours[1] == theirs[1] and all(
        _alike(x, y, at, period, kinds, sparse) for x, y in zip(ours[0], theirs[0], strict=True)
    )


def _alike(x: Any, y: Any, at: Mapping[fx.Node, int], period: int, kinds: Mapping[fx.Node, Any], sparse: Any) -> bool:
    if not isinstance(x, fx.Node) or not isinstance(y, fx.Node):
        return type(x) is type(y) and x == y
    if x is y:
        return x not in sparse
    if x.op == "placeholder" and y.op == "placeholder":
        return kinds.get(x) == kinds.get(y) and (x in sparse) == (y in sparse) and _value(x) == _value(y)
    return x in at and y in at and at[y] - at[x] == period


def _value(node: fx.Node) -> Any:
    """What matters about a node's value."""
    values, spec = tree_flatten(example(node))
    return str(spec), [
        (v.shape, v.stride(), v.dtype, v.device, v.requires_grad) if isinstance(v, torch.Tensor) else v for v in values
    ]


def _stretches(equal: list[bool]) -> list[tuple[int, int]]:
    """Start and length of each stretch of true values."""
    found, start = [], None
    for i, same in enumerate([*equal, False]):
        if same and start is None:
            start = i
        elif not same and start is not None:
            found.append((start, i - start))
            start = None
    return found


def _cut(graph: fx.Graph, blocks: list[list[fx.Node]]) -> bool:
    """Remove all blocks but the first, the second and the last. False: the last reads further back than one block."""
    second, dropped, last = blocks[1], blocks[2:-1], set(blocks[-1])
    early = {node for block in dropped[:-1] for node in block}
    if any(source in early for node in last for source in node.all_input_nodes):
        return False
    for block in reversed(dropped):
        for node, twin in zip(reversed(block), reversed(second), strict=True):
            node.replace_all_uses_with(twin)
            graph.erase_node(node)
    return True
