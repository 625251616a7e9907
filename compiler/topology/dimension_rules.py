"""Rules: how each operation pairs the dimensions of its inputs with the dimensions of its results.

A rule gets the atoms, the sizes of the result and the operation's arguments by their names in its schema, every tensor
as the list of its dimensions, and gives the dimensions of the result (a tuple of them for several). A permutation of
any atom that is left free must commute with the operation. Dimensions of an operation without a rule are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .dimensions import ONE, Atoms, Dim


class Dims(list[Dim]):
    """The dimensions of one tensor."""


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
Sizes = list[int]

PICKED = "the position of its elements matters ({op})"


def rule(*names: str) -> Callable[[Rule], Rule]:
    def put(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return put


def broadcast(atoms: Atoms, tensors: Iterable[Any]) -> Dims:
    """Pair the dimensions from the last on, as arithmetic does."""
    given = [tensor for tensor in tensors if isinstance(tensor, Dims)]
    out = Dims([ONE] * max(map(len, given), default=0))
    for tensor in given:
        for i in range(-len(tensor), 0):
            if atoms.length(tensor[i]) != 1:
                if atoms.length(out[i]) == 1:
                    out[i] = tensor[i]
                else:
                    atoms.unify(out[i], tensor[i])
    return out


@rule("copy")
def pointwise(atoms: Atoms, sizes: Sizes, /, **arguments: Any) -> Dims:
    """Every operation that torch tags as pointwise, and assignment."""
    leaves = [leaf for value in arguments.values() for leaf in (value if type(value) is list else [value])]
    return broadcast(atoms, leaves)


@rule("to", "to_copy", "contiguous", "dropout", "alpha_dropout", "type_as", "detach", "alias", "lift_fresh_copy")
def same(atoms: Atoms, sizes: Sizes, /, self: Any = None, input: Any = None, **_: Any) -> Dims:
    return self if self is not None else input


@rule("prelu")
def prelu(atoms: Atoms, sizes: Sizes, /, self: Dims, weight: Dims, **_: Any) -> Dims:
    if atoms.length(weight[0]) != 1:
        atoms.unify(weight[0], self[1])
    return self


# Views


@rule("view", "reshape", "unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze")
def view(atoms: Atoms, sizes: Sizes, /, self: Dims, **_: Any) -> Dims:
    """Groups of dimensions, before and after, with the same number of elements, are merged or split."""
    out, left = Dims(), [dim for dim in self if atoms.length(dim) != 1]
    wanted = list(sizes)
    while wanted:
        if wanted[0] == 1:
            out.append(ONE)
            wanted.pop(0)
            continue
        before, after = [left.pop(0)], [wanted.pop(0)]
        had, has = atoms.length(before[0]), after[0]
        while had != has:
            if had < has:
                before.append(left.pop(0))
                had *= atoms.length(before[-1])
            else:
                after.append(wanted.pop(0))
                has *= after[-1]
        if len(after) == 1:
            out.append(atoms.product(before))
            continue
        parts = [atoms.new(size) for size in after]
        atoms.unify(atoms.product(before), atoms.product(parts))
        out.extend(parts)
    return out


@rule("t", "numpy_t", "mt", "adjoint")
def swap_last(atoms: Atoms, sizes: Sizes, /, self: Dims, **_: Any) -> Dims:
    return Dims([*self[:-2], *reversed(self[-2:])])


@rule("transpose", "swapaxes", "swapdims")
def transpose(atoms: Atoms, sizes: Sizes, /, self: Dims, **dims: int) -> Dims:
    out = Dims(self)
    one, two = dims.values()
    out[one], out[two] = out[two], out[one]
    return out


@rule("permute")
def permute(atoms: Atoms, sizes: Sizes, /, self: Dims, dims: list[int]) -> Dims:
    return Dims(self[d] for d in dims)


@rule("movedim", "moveaxis")
def movedim(atoms: Atoms, sizes: Sizes, /, self: Dims, source: Any, destination: Any) -> Dims:
    pairs = [(source, destination)] if isinstance(source, int) else zip(source, destination, strict=True)
    placed = {there % len(self): here % len(self) for here, there in pairs}
    rest = iter(d for d in range(len(self)) if d not in placed.values())
    return Dims(self[placed[d] if d in placed else next(rest)] for d in range(len(self)))


@rule("expand", "expand_as", "broadcast_to")
def expand(atoms: Atoms, sizes: Sizes, /, self: Dims, **_: Any) -> Dims:
    """A dimension that repeats one value may be permuted freely."""
    old = [ONE] * (len(sizes) - len(self)) + self
    return Dims(d if atoms.length(d) == size else atoms.new(size) for d, size in zip(old, sizes, strict=True))


# Cutting and joining


def cut(atoms: Atoms, dim: Dim, lengths: list[int]) -> list[Dim]:
    """Consecutive pieces of a dimension."""
    pieces = [atoms.new(n) for n in lengths if n]
    atoms.unify(dim, tuple(segment for piece in pieces for segment in piece))
    found = iter(pieces)
    return [next(found) if n else atoms.new(0) for n in lengths]


@rule("slice", "narrow")
def slice_(atoms: Atoms, sizes: Sizes, /, self: Dims, dim: int = 0, start: Any = None, step: int = 1, **_: Any) -> Dims:
    length, size = atoms.length(self[dim]), sizes[dim]
    out = Dims(self)
    if size == length:
        return out
    first = min(start or 0, length) + (length if (start or 0) < 0 else 0)
    if step != 1 or not isinstance(first, int) or first < 0:
        atoms.fix([self[dim]], PICKED.format(op="slice"))
        out[dim] = atoms.new(size, PICKED.format(op="slice"))
    else:
        out[dim] = cut(atoms, self[dim], [first, size, length - first - size])[1]
    return out


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(atoms: Atoms, sizes: list[Sizes], /, self: Dims, dim: int = 0, **_: Any) -> tuple[Dims, ...]:
    outs = tuple(Dims(self) for _ in sizes)
    for out, piece in zip(outs, cut(atoms, self[dim], [s[dim] for s in sizes]), strict=True):
        out[dim] = piece
    return outs


@rule("glu")
def glu(atoms: Atoms, sizes: Sizes, /, self: Dims, dim: int = -1) -> Dims:
    out, half = Dims(self), atoms.length(self[dim]) // 2
    out[dim], gate = cut(atoms, self[dim], [half, half])
    atoms.unify(out[dim], gate)
    return out


@rule("select")
def select(atoms: Atoms, sizes: Sizes, /, self: Dims, dim: int, **_: Any) -> Dims:
    atoms.fix([self[dim]], PICKED.format(op="select"))
    return Dims(d for i, d in enumerate(self) if i != dim % len(self))


@rule("unbind")
def unbind(atoms: Atoms, sizes: list[Sizes], /, self: Dims, dim: int = 0) -> tuple[Dims, ...]:
    return tuple(select(atoms, s, self=self, dim=dim) for s in sizes)


@rule("cat", "concat")
def cat(atoms: Atoms, sizes: Sizes, /, tensors: list[Dims], dim: int = 0) -> Dims:
    given = [t for t in tensors if t]
    dim %= len(given[0])
    out = broadcast(atoms, [Dims(ONE if i == dim else d for i, d in enumerate(t)) for t in given])
    out[dim] = tuple(segment for t in given for segment in t[dim])
    return out


@rule("stack")
def stack(atoms: Atoms, sizes: Sizes, /, tensors: list[Dims], dim: int = 0) -> Dims:
    out = broadcast(atoms, tensors)
    out.insert(dim % (len(out) + 1), atoms.new(len(tensors), PICKED.format(op="stack")))
    return out
