"""Follow each parameter through views, transposes, casts and splits to the operations that consume it.

Views are evaluated on meta tensors with the parameter's own strides, which needs no memory. The stride of a view's
dimension then shows which dimensions of the parameter the view walks. If a view cannot be evaluated (a reshape that
copies, an unknown size), the view is 'unsure': the parameter counts as followed, in its own shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import fx, nn

from .matrix_view import layout_of
from .op_table import (
    EMBEDDINGS,
    GATHERS,
    IGNORED,
    KEEPERS,
    MOVERS,
    WEIGHTS,
    contraction,
    example,
    flat,
    op_name,
    slots,
    value_of,
)
from .trace import Capture, Traced, attribute


@dataclass
class Hit:
    """One use of a parameter as the weight of a product or convolution; `macs` is None where shapes are not known."""

    op: str
    perm: tuple[int, ...]
    lead: int
    macs: float | None = None
    depthwise: bool = False
    first: bool = False  # a convolution over images whose input has met no other weight


@dataclass
class Found:
    """By parameter name: uses as a weight, names of the other operations, and the parameters used as embeddings."""

    hits: dict[str, list[Hit]] = field(default_factory=lambda: defaultdict(list))
    others: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    embedded: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Seen:
    """A value that is (a part of) parameter `name`; `view`: meta tensor over its strides, a list of them, or None."""

    name: str
    view: Any


def follow(capture: Capture, model: nn.Module) -> Found:
    """Every use of every parameter of `model` in the captured graphs."""
    walk = _Walk({name: p.shape for name, p in model.named_parameters()})
    for index, traced in enumerate(capture.graphs):
        walk.graph(traced)
        for node in traced.graph.nodes:
            # Graphs run in this order (Dynamo's graph breaks): a value in one graph can reach every later graph.
            walk.flow.add_edge(node, ("end", index))
            if node.op == "placeholder" and node not in traced.params and index:
                walk.flow.add_edge(("end", index - 1), node)
        walk.flow.add_edge(("end", index - 1), ("end", index))
    walk.mark_first()
    return walk.found


class _Walk:
    def __init__(self, shapes: dict[str, torch.Size]) -> None:
        self.shapes = shapes
        self.flow = nx.DiGraph()  # the dataflow of all graphs and their subgraphs together
        self.env: dict[fx.Node, tuple[Seen, ...]] = {}
        self.found = Found()
        self.consumers: set[fx.Node] = set()
        self.images: list[tuple[fx.Node, fx.Node, Hit]] = []  # (convolution, its input, its hit)

    def graph(self, traced: Traced) -> None:
        for node in traced.graph.nodes:
            self.flow.add_edges_from((source, node) for source in node.all_input_nodes)
            if node in traced.params:
                name = traced.params[node]
                self.env[node] = (Seen(name, torch.empty(self.shapes[name], device="meta")),)
            elif node.op == "call_module":
                self._module(node, attribute(traced.root, node.target), traced)
            elif not self._subgraphs(node, traced.root) and any(a in self.env for a in node.all_input_nodes):
                self._operation(node)

    def _module(self, node: fx.Node, module: nn.Module | None, traced: Traced) -> None:
        """A module that tracing left whole: an RNN or an attention, whose matrices are weights by definition."""
        inside = {id(p): name for name, p in module.named_parameters()} if module is not None else {}
        for name, p in traced.root.named_parameters():
            if id(p) in inside and p.ndim > 1 and "weight" in inside[id(p)]:
                self.consumers.add(node)
                identity = tuple(range(p.ndim))
                self.found.hits[name].append(Hit(type(module).__name__.lower(), identity, 1))
        self._others(node, "a module")

    def _subgraphs(self, node: fx.Node, root: nn.Module) -> bool:
        """Walk the graphs that a higher-order operation (checkpoint, autocast, cond) calls; True if any."""
        leaves = flat((node.args, node.kwargs))
        bodies = [(i, attribute(root, a.target)) for i, a in enumerate(leaves)
                  if isinstance(a, fx.Node) and a.op == "get_attr"]  # fmt: skip
        bodies = [(i, body) for i, body in bodies if isinstance(body, fx.GraphModule)]
        if not bodies:
            return False
        operands = [a for a in leaves[bodies[-1][0] + 1 :] if not isinstance(a, str)]
        for _, body in bodies:
            inputs = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
            for inner, operand in zip(inputs, operands, strict=False):
                if isinstance(operand, fx.Node):
                    self.flow.add_edge(operand, inner)
                    if operand in self.env:
                        self.env[inner] = self.env[operand]
            self.graph(Traced(body, body.graph, {}))
            self.flow.add_edges_from((inner, node) for inner in body.graph.nodes if inner.op == "output")
        return True

    def _operation(self, node: fx.Node) -> None:
        name = op_name(node)
        if name in IGNORED or (name == "getattr" and node.args[1] not in ("T", "mT", "H", "mH", "data")):
            return
        if (name in MOVERS | KEEPERS | GATHERS or name == "getattr") and not self._looked_up(node, name):
            source = next((a for a in flat(node.args) if isinstance(a, fx.Node)), None)
            if source in self.env:  # otherwise another value is moved to the parameter's type: x.type_as(w)
                self.env[node] = self._moved(node, name)
            return
        used: set[str] = set()
        for slot, argument in slots(node):
            for seen in self.env.get(argument, ()):
                kind = WEIGHTS.get(name, {}).get(slot)
                if kind is not None and len(self.shapes[seen.name]) > 1:
                    used |= self._weight(node, name, kind, slot, seen)
        if name in EMBEDDINGS:
            self.found.embedded.update(s.name for a in node.all_input_nodes for s in self.env.get(a, ()))
        self._others(node, name, used)

    def _others(self, node: fx.Node, name: str, used: Iterable[str] = ()) -> None:
        for seen in {s.name for a in node.all_input_nodes for s in self.env.get(a, ())} - set(used):
            self.found.others[seen].append(name)

    def _looked_up(self, node: fx.Node, name: str) -> bool:
        """Whether rows of a table are gathered, as in an embedding; of more dimensions, they are whole matrices."""
        source, *index = node.all_input_nodes
        gathers = name in GATHERS or (name == "getitem" and any(_rank(at) is not None for at in index))
        return gathers and any(len(self.shapes[seen.name]) < 3 for seen in self.env.get(source, ()))

    def _moved(self, node: fx.Node, name: str) -> tuple[Seen, ...]:
        sources = [s for a in node.all_input_nodes for s in self.env.get(a, ())]
        if name in KEEPERS or (name in GATHERS and _rank(node) in {_rank(s.view) for s in sources}):
            return tuple(self.env[node.all_input_nodes[0]])
        if len(sources) == 1 and sources[0].view is not None and name not in ("cat", "stack", "concat", *GATHERS):
            try:
                return (Seen(sources[0].name, _evaluate(node, sources[0].view)),)
            except Exception:  # a size or an index that is not known at trace time
                pass
        return tuple({s.name: Seen(s.name, None) for s in sources}.values())

    def _weight(self, node: fx.Node, op: str, kind: str, slot: Any, seen: Seen) -> set[str]:
        """Record the use, if it is one; the names it recorded."""
        shape = self.shapes[seen.name]
        hit = Hit(op, tuple(range(len(shape))), 1)
        if isinstance(seen.view, torch.Tensor):
            use = contraction(node, op, kind, slot, seen.view)
            if use is None:
                return set()
            seen_as = layout_of(shape, seen.view, use.contracted, use.batch)
            hit.perm, hit.lead = seen_as or (hit.perm, hit.lead)
            hit.macs, hit.depthwise = use.macs, use.depthwise
            if use.image is not None:
                self.images.append((node, use.image, hit))
        self.found.hits[seen.name].append(hit)
        self.consumers.add(node)
        return {seen.name}

    def mark_first(self) -> None:
        """A convolution is first when nothing its input depends on has used a weight."""
        for _, source, hit in self.images:
            before = {source} | (nx.ancestors(self.flow, source) if source in self.flow else set())
            hit.first = not before & self.consumers


def _rank(value: Any) -> int | None:
    """The rank of a meta tensor, or of a node's known value."""
    value = example(value) if isinstance(value, fx.Node) else value
    return value.dim() if isinstance(value, torch.Tensor) else None


def _evaluate(node: fx.Node, view: Any) -> Any:
    """Run one mover on the meta view of its first argument; None if the result is a copy, which has new strides."""
    first = node.all_input_nodes[0]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda a: view if a is first else value_of(a))
    if node.op == "call_method":
        out = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        out = node.target(*args, **kwargs)  # type: ignore[operator]
    old, new = (v[0] if isinstance(v, (tuple, list)) else v for v in (view, out))
    return out if old.untyped_storage()._cdata == new.untyped_storage()._cdata else None
