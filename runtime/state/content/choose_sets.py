"""The sets that a method chooses, as masks and as an index."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from topkast.runtime.kernels import sets as kernels
from topkast.runtime.layout import Index
from topkast.runtime.methods import Method, SetState
from topkast.runtime.methods.method import Sets

from .marks import packed


@dataclass(frozen=True)
class Chosen:
    """A and B, as an index and as masks (bool [units])."""

    index: Index
    fwd: Tensor
    bwd: Tensor


def scores(state: SetState, theta: Tensor) -> Tensor:
    """Score of every unit of θ, [groups, units / groups]."""
    return kernels.scores(theta, state.geometry).view(state.groups, -1)


def first_sets(method: Method, state: SetState, theta: Tensor) -> Chosen:
    """The first sets of θ, without any earlier sets."""
    return _chosen(state, method.start(state, scores(state, theta)))


def renewed_sets(method: Method, state: SetState, theta: Tensor) -> Chosen:
    """The sets that a refresh chooses."""
    return _chosen(state, method.renew(state, scores(state, theta)))


def _chosen(state: SetState, sets: Sets) -> Chosen:
    (fwd, bwd), grid = (mask.view(-1) for mask in sets), state.geometry.grid
    return Chosen(kernels.build_index(fwd.view(grid), bwd.view(grid), state.n_bwd), fwd, bwd)


def with_bits(ever: Tensor, fwd: Tensor) -> Tensor:
    """Add A to the record of all units that were ever in A (one bit for each unit). Both tensors are on one device."""
    return ever | packed(fwd)
