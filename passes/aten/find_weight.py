"""Which factor of a product is the weight, and which op makes a weight's gradient.

Moves may lie between the ``weight`` node and the product, and between the op and the ``weight_grad`` node. Positions
that are sent through the moves (:mod:`.moves`) show what the product reads: the weight's matrix, its transpose, or
something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx

from topkast.runtime.layout import Geometry

from .moves import positions, replay, walk_back
from .nodes import is_static, transposed
from .weight_call import WEIGHT, WEIGHT_GRAD, WeightCall

Side = Literal["matrix", "transpose"]
MIXED = "the weight's rows and columns are mixed before the product"


def as_matrix(tensor: Tensor, g: Geometry) -> Tensor:
    """A tensor of the weight's shape as [rows, cols]."""
    return tensor.permute(g.perm).reshape(g.rows, g.cols)


def side_of(where: Tensor, matrix: Tensor) -> Side | None:
    """Whether ``where`` ([..., a, b], positions of W) is W's matrix, or its transpose; batches stack in the rows."""
    if where.dim() == 3:
        if matrix.shape[0] % where.shape[0]:
            return None
        matrix = matrix.unflatten(0, (where.shape[0], -1))
    if where.shape == matrix.mT.shape and torch.equal(where, matrix.mT):
        return "transpose"
    if where.shape == matrix.shape and torch.equal(where, matrix):
        return "matrix"
    return None


def weight_behind(node: Any) -> tuple[fx.Node, Tensor] | None:
    """If ``node`` is W_A after moves only: the ``weight`` node, and which position of W each element is."""
    weight, moves = walk_back(node)
    if weight is None or weight.target is not WEIGHT:
        return None
    where = replay(moves, positions(WeightCall.of(weight).geometry.shape))
    return None if where is None else (weight, where)


@dataclass(frozen=True, eq=False)
class WeightFactor:
    """The factor of a product that is a weight.

    The kernels have the weight on the right. A weight on the left is turned: W x = (xᵀ Wᵀ)ᵀ.

    Args:
        weight: the ``weight`` node.
        where: which position of W each element of the factor is.
        other: the other factor.
        on_left: whether the weight is the left factor.
    """

    weight: fx.Node
    where: Tensor
    other: fx.Node
    on_left: bool

    @classmethod
    def among(cls, left: Any, right: Any) -> WeightFactor | None:
        """The factor that is a weight; the right factor if both are weights, None if neither is."""
        for factor, other, on_left in ((right, left, False), (left, right, True)):
            behind = weight_behind(factor)
            if behind is not None:
                return cls(*behind, other, on_left)
        return None

    @cached_property
    def call(self) -> WeightCall:
        return WeightCall.of(self.weight)

    @cached_property
    def matrix(self) -> Tensor:
        """The positions of W as the weight's matrix."""
        g = self.call.geometry
        return as_matrix(positions(g.shape), g)

    @property
    def where_on_right(self) -> Tensor:
        """``where`` once the weight is the right factor."""
        return self.where.mT if self.on_left else self.where

    def turn_other(self, graph: fx.Graph) -> fx.Node:
        """The other factor, turned if the product is turned."""
        return transposed(graph, self.other) if self.on_left else self.other

    def turn_back(self, graph: fx.Graph, product: fx.Node) -> fx.Node:
        """The result as the model wants it, from the result of the product that may be turned."""
        return transposed(graph, product) if self.on_left else product


@dataclass(frozen=True, eq=False)
class WeightGradient:
    """The dense gradient that a ``weight_grad`` node samples at B.

    Args:
        node: the ``weight_grad`` node.
        maker: the op that makes the gradient.
        moves: what moves its elements on their way to ``node``.
    """

    node: fx.Node
    maker: fx.Node
    moves: list[fx.Node]

    @classmethod
    def of(cls, node: fx.Node) -> WeightGradient | None:
        """The gradient that ``node`` samples; None if ``node`` samples none or no op makes the gradient."""
        if node.target is not WEIGHT_GRAD:
            return None
        maker, moves = walk_back(WeightCall.of(node).operands["grad"])
        return None if maker is None else cls(node, maker, moves)

    @cached_property
    def call(self) -> WeightCall:
        return WeightCall.of(self.node)

    @cached_property
    def where(self) -> Tensor:
        """The positions of the result of ``maker``, whose sizes must be numbers."""
        return positions(tuple(self.maker.meta["val"].shape))

    @property
    def moved(self) -> Tensor | None:
        """The same positions in the shape of the weight, each where the moves take it; None if that is not known."""
        return replay(self.moves, self.where)

    @cached_property
    def side(self) -> Side | None:
        """Whether the result of ``maker`` is the matrix of the gradient, or its transpose; None if neither."""
        moved = self.moved
        return None if moved is None else side_of(self.where, as_matrix(moved, self.call.geometry))

    @property
    def refusal(self) -> str | None:
        """Why the result of ``maker`` is not the gradient's matrix or its transpose; None if it is."""
        if not is_static(self.maker):
            return "a gradient of symbolic shape"
        return "the gradient's rows and columns are mixed after the product" if self.side is None else None
