"""Carry dimensions through a graph of ``torch.export``, rule by rule."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from topkast.compiler.capture.op_table import IGNORED, op_name
from topkast.compiler.capture.trace import Traced

from . import dimension_products as dim_products  # noqa: F401  (its rules)
from .dimension_rules import RULES, Dims, pointwise
from .dimensions import Atoms, Dim, Segment

BAD_FORM = (
    IndexError,
    KeyError,
    StopIteration,
    TypeError,
    ValueError,
)  # what a rule raises for a call it does not know


class Walk:
    """The atoms of a graph, and the dimensions of every value in it and of every parameter and buffer."""

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.env: dict[fx.Node, Any] = {}
        self.tensors: dict[str, Dims] = {}

    def graph(self, traced: Traced) -> None:
        names = {**traced.params, **traced.buffers}
        for node in traced.graph.nodes:
            if node.op == "output":
                self.atoms.fix(self._dims(node), "an output of the model")
            elif node in names:
                if node.users:  # of a tied weight only one may be
                    new = Dims(self.atoms.new(n) for n in node.meta["val"].shape)
                    self.env[node] = self.tensors.setdefault(names[node], new)
            elif node.op == "call_function":
                self.env[node] = self._call(node)
            else:
                why = "an input of the model" if node.op == "placeholder" else "a constant"
                self.env[node] = self._fresh(node, why)

    def _dims(self, node: fx.Node) -> list[Dim]:
        values = [self.env.get(source) for source in node.all_input_nodes]
        flat = [v for value in values for v in (value if type(value) is tuple else (value,))]
        return [dim for value in flat if isinstance(value, Dims) for dim in value]

    def _fresh(self, node: fx.Node, why: str) -> Any:
        """Fixed dimensions of the node's own sizes."""
        sizes = _sizes(node.meta.get("val"))
        if sizes is None:
            return None
        if isinstance(sizes, tuple):
            return tuple(None if s is None else Dims(self.atoms.new(n, why) for n in s) for s in sizes)
        return Dims(self.atoms.new(n, why) for n in sizes)

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem and isinstance(self.env.get(node.args[0]), tuple):  # type: ignore[arg-type]
            return self.env[node.args[0]][node.args[1]]  # type: ignore[index]
        value = node.meta.get("val")
        name, sizes, read = op_name(node), _sizes(value), self._dims(node)
        if sizes is None and isinstance(value, Tensor):
            self.atoms.fix(read, f"the operation {name} gives sizes that depend on values")
        if name in IGNORED or sizes is None:
            return self._fresh(node, "made of sizes alone")
        free = [dim for dim in read if not self.atoms.fixed(dim)]
        if not free:
            return self._fresh(
                node, next((self.atoms.reasons[a] for d in read for a in self.atoms.atoms(d)), "a constant")
            )
        found, why = self._by_rule(node, name, sizes)
        if found is None:
            self.atoms.fix(read, why)
            found = self._fresh(node, why)
        return found

    def _by_rule(self, node: fx.Node, name: str, sizes: Any) -> tuple[Any, str]:
        rule = RULES.get(name)
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = pointwise
        if rule is None or not isinstance(node.target, torch._ops.OpOverload):
            return None, f"the operation {name} has no rule"
        try:
            arguments = self._arguments(node)
            if name.startswith("conv_transpose"):
                arguments["transposed"] = True
            found = rule(self.atoms, sizes, **arguments)
        except BAD_FORM:
            found = None
        many = found if isinstance(found, tuple) else (found,)
        lengths = [None if dims is None else [self.atoms.length(dim) for dim in dims] for dims in many]
        right = lengths == (list(sizes) if isinstance(sizes, tuple) else [sizes])
        return (found, "") if right else (None, f"the operation {name} is used in a form that has no rule")

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """By name, with the dimensions of every tensor in its place; what is left to its default is left out."""
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)} | node.kwargs

        def known(value: Any) -> Any:
            if isinstance(value, fx.Node):
                if self.env.get(value) is None:
                    raise ValueError(f"{value} is a number that is not known")
                return self.env[value]
            return [known(item) for item in value] if isinstance(value, (list, tuple)) else value

        return {name: known(value) for name, value in given.items()}

    def inner(self, segments: set[Segment], sizes: dict[int, int]) -> dict[int, int]:
        """Atoms that stand right inside of one other free atom in every tensor of the model, and beside it in every
        value of the graph; where that one meets itself in another dimension, as in attention between heads, they are
        compared across its indices."""
        outer: dict[int, set[int | None]] = {}
        for segment in segments:
            for before, atom in zip((None, *segment), segment, strict=False):
                outer.setdefault(atom, set()).add(before)
        only = {atom: next(iter(before)) for atom, before in outer.items() if atom in sizes and len(before) == 1}
        found = {atom: around for atom, around in only.items() if around is not None and around in sizes}
        for value in _values(self.env):
            seen = [atom for dim in value for atom in set(self.atoms.atoms(dim))]
            for atom, around in list(found.items()):
                if seen.count(around) > 1 or (atom in seen and around not in seen):
                    del found[atom]
        return {atom: around for atom, around in found.items() if around not in found}


def _values(env: dict[fx.Node, Any]) -> Iterator[Dims]:
    for value in env.values():
        for part in value if type(value) is tuple else (value,):
            if isinstance(part, Dims):
                yield part


def _sizes(value: Any) -> Any:
    """Sizes of a tensor as a list; for several tensors a tuple of lists; None if the value is no tensor."""
    if isinstance(value, Tensor):
        return list(value.shape) if all(isinstance(n, int) for n in value.shape) else None
    if isinstance(value, (tuple, list)):
        return tuple(map(_sizes, value))
    return None
