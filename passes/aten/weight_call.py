"""The arguments of an operator that computes with a sparse weight, by name.

``weight``, ``weight_grad``, ``spmm``, ``sddmm`` and their variants all take, in this order:

    dense tensors (``x``, ``dy``, ``ends`` or ``grad``), the values, the index, the geometry, n_fwd, options

``weight`` has no dense tensor. An operator whose result is a gradient at B has no values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import fx

from topkast.runtime.layout import Geometry

from .nodes import emit, topkast

WEIGHT, WEIGHT_GRAD = topkast.weight.default, topkast.weight_grad.default

_STORED = ("values", "row_ptr", "row_fwd", "cols", "key", "shape", "perm", "lead", "block", "n_fwd")


@dataclass(frozen=True, eq=False)
class WeightCall:
    """The arguments of a node whose operator computes with a sparse weight.

    Args:
        operands: the dense tensors before the weight, by their names in the operator's schema.
        values: of the blocks in B; None if the node's result is a gradient at B.
        row_ptr, row_fwd, cols: the index, see :mod:`topkast.runtime.layout`.
        key: the number of the site.
        shape, perm, lead, block: the fields of the weight's :class:`~topkast.runtime.layout.Geometry`.
        n_fwd: the number of blocks in A.
        options: the arguments after the weight that are given, by name: ``bias``, ``stride``, ``impl``, ``widths``, ...
    """

    operands: dict[str, fx.Node]
    values: fx.Node | None
    row_ptr: fx.Node
    row_fwd: fx.Node
    cols: fx.Node
    key: fx.Node
    shape: list[int]
    perm: list[int]
    lead: int
    block: list[int]
    n_fwd: int
    options: dict[str, Any]

    @classmethod
    def of(cls, node: fx.Node) -> WeightCall:
        """The arguments of a node whose operator computes with a sparse weight."""
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        before = names[: min(names.index(name) for name in _STORED if name in names)]
        operands = {name: given.pop(name) for name in before}
        stored = {name: given.pop(name, None) for name in _STORED}
        return cls(operands, **stored, options=given)

    @property
    def args(self) -> tuple[Any, ...]:
        """The weight as every operator takes it: the values, if there are any, the index and the geometry."""
        values = () if self.values is None else (self.values,)
        return *values, *self.index, self.key, self.shape, self.perm, self.lead, self.block, self.n_fwd

    @property
    def index(self) -> tuple[fx.Node, fx.Node, fx.Node]:
        return self.row_ptr, self.row_fwd, self.cols

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry(tuple(self.shape), tuple(self.perm), self.lead, tuple(self.block))  # type: ignore[arg-type]

    @property
    def slots(self) -> int:
        """The number of blocks that the index has room for."""
        return self.cols.meta["val"].shape[0]

    @property
    def activations(self) -> list[fx.Node]:
        """The operands ``dy`` and ``x``, those of them that the operator has."""
        return [node for name, node in self.operands.items() if name in ("dy", "x")]

    def seen_as(self, g: Geometry) -> WeightCall:
        """The same weight, seen in another geometry that gives the same matrix."""
        return replace(self, shape=list(g.shape), perm=list(g.perm), lead=g.lead, block=list(g.block))

    def write(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        """Add a call of the operator of ``node`` with these arguments, and the lasting metadata of ``node``."""
        options = dict(self.options)
        bias = [options.pop("bias")] if "bias" in options else []
        return emit(graph, node.target, *self.operands.values(), *self.args, *bias, like=node, **options)  # type: ignore[arg-type]
