"""Find the parts of each dimension by unification.

A dimension is a row of segments (what ``cat`` joins and ``split`` cuts), a segment a product of atoms, outermost first
(what ``view`` merges and splits). An atom is a set of indices that may be permuted as one; every dimension in which it
occurs is permuted with it. Two dimensions that an operation pairs must be made of the same atoms: unifying them merges,
splits and cuts atoms until they are. A dimension that cannot be written in this form is fixed, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import networkx as nx

Segment = tuple[int, ...]
Dim = tuple[Segment, ...]

ONE: Dim = ((),)  # a dimension of one element: a product of nothing


class Atoms:
    """All atoms of a model, each a number; equal atoms are one set of a union-find."""

    def __init__(self) -> None:
        self._same: nx.utils.UnionFind = nx.utils.UnionFind()
        self._size: list[int] = []
        self._parts: dict[int, Dim] = {}  # what an atom turned out to be made of
        self._inner: set[int] = set()  # atoms that have stood inside of another one: they cannot be cut
        self.reasons: dict[int, str] = {}  # atom -> why it is fixed

    def size(self, atom: int) -> int:
        return self._size[atom]

    def new(self, size: int, reason: str | None = None) -> Dim:
        """A dimension of one new atom, fixed if there is a reason."""
        if size == 1:
            return ONE
        atom = len(self._size)
        self._size.append(size)
        self._same[atom]
        if reason is not None:
            self.reasons[atom] = reason
        return ((atom,),)

    def length(self, dim: Dim) -> int:
        return sum(self._count(segment) for segment in dim)

    def _count(self, segment: Segment) -> int:
        return math.prod(self._size[atom] for atom in segment)

    def normal(self, dim: Dim) -> Dim:
        """The same dimension in the current atoms, with one atom for each set of equal atoms."""
        found: list[Segment] = []
        for segment in dim:
            partial: list[Segment] = [()]
            for atom in segment:
                root = self._same[atom]
                parts = self.normal(self._parts[root]) if root in self._parts else ((root,),)
                partial = [outer + part for outer in partial for part in parts]
            found += partial
        return tuple(found)

    def atoms(self, dim: Dim) -> list[int]:
        return [atom for segment in self.normal(dim) for atom in segment]

    def fixed(self, dim: Dim) -> bool:
        return all(atom in self.reasons for atom in self.atoms(dim))

    def fix(self, dims: Iterable[Dim], reason: str) -> None:
        """Forbid every permutation of these dimensions; the first reason stays."""
        for dim in dims:
            for atom in self.atoms(dim):
                self.reasons.setdefault(atom, reason)

    def product(self, dims: Iterable[Dim]) -> Dim:
        """One dimension that runs over all combinations, the last fastest."""
        merged = ONE
        for dim in map(self.normal, dims):
            if dim == ONE:
                continue
            if merged == ONE:
                merged = dim
                continue
            if len(dim) > 1:
                reason = "a concatenation inside of a merged dimension"
                self.fix([dim], reason)
                dim = self.new(self.length(dim), reason)
            self._inner.update(dim[0])
            merged = tuple(segment + dim[0] for segment in merged)
        return merged

    def unify(self, one: Dim, two: Dim) -> None:
        """Make both dimensions of the same atoms; if this is impossible, both are fixed completely."""
        one, two = self.normal(one), self.normal(two)
        for known, other in ((one, two), (two, one)):
            if known != other and self.fixed(known):
                self.fix([other], self.reasons[self.atoms(known)[0]])
                return
        if one != two and not self._match(one, two):
            self.fix([one, two], "parts of it are used in ways that no permutation of it keeps apart")

    def _match(self, one: Dim, two: Dim) -> bool:
        while one and two:
            one, two = self.normal(one), self.normal(two)  # the step before may have changed what is left
            if self._count(one[0]) > self._count(two[0]):
                one, two = two, one
            (short, *one_rest), (long, *two_rest) = one, two
            if self._count(short) < self._count(long):
                pieces = self._cut(long, self._count(short))
                if pieces is None:
                    return False
                long, rest = pieces
                two_rest.insert(0, rest)
            if not self._match_segment(short, long):
                return False
            one, two = tuple(one_rest), tuple(two_rest)
        return not one and not two

    def _cut(self, segment: Segment, at: int) -> tuple[Segment, Segment] | None:
        """Cut a segment in two, through its outermost atom; None if that atom is inside another atom elsewhere."""
        outer, *inner = segment
        each = self._count(tuple(inner))
        if outer in self._inner or at % each:
            return None
        first, rest = (self.new(n, self.reasons.get(outer)) for n in (at // each, self._size[outer] - at // each))
        self._parts[outer] = (first[0], rest[0])
        return first[0] + tuple(inner), rest[0] + tuple(inner)

    def _match_segment(self, one: Segment, two: Segment) -> bool:
        while one and two:
            one, two = self.normal((one,))[0], self.normal((two,))[0]
            if self._size[one[0]] > self._size[two[0]]:
                one, two = two, one
            small, large = one[0], two[0]
            if self._size[small] == self._size[large]:
                self._merge(small, large)
                one, two = one[1:], two[1:]
                continue
            if self._size[large] % self._size[small]:
                return False
            reason = self.reasons.get(large)
            outer, inner = (self.new(n, reason) for n in (self._size[small], self._size[large] // self._size[small]))
            self._parts[large] = (outer[0] + inner[0],)
            self._inner.update(inner[0])
            if large in self._inner:
                self._inner.update(outer[0])
        return not one and not two

    def _merge(self, one: int, two: int) -> None:
        if one == two:
            return
        known = self.reasons.get(one, self.reasons.get(two))
        inner = one in self._inner or two in self._inner
        self._same.union(one, two)
        root = self._same[one]
        if known is not None:
            self.reasons[root] = known
        if inner:
            self._inner.add(root)
