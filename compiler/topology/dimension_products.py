"""How products, convolutions, reductions and norms pair dimensions; see
:mod:`topkast.compiler.topology.dimension_rules`.
"""

from __future__ import annotations

from typing import Any

from .dimension_rules import PICKED, Dims, Sizes, broadcast, rule
from .dimensions import ONE, Atoms, Dim

POSITIONS = "positions of an image"


@rule("linear")
def linear(atoms: Atoms, sizes: Sizes, /, input: Dims, weight: Dims, bias: Any = None) -> Dims:
    atoms.unify(input[-1], weight[-1])
    return broadcast(atoms, [Dims([*input[:-1], *weight[:-1]]), bias])


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(atoms: Atoms, sizes: Sizes, /, self: Dims, **others: Any) -> Dims:
    other = next(value for value in others.values() if isinstance(value, Dims))
    atoms.unify(self[-1], other[-2 if len(other) > 1 else 0])
    batch = broadcast(atoms, [Dims(self[:-2]), Dims(other[:-2])])
    return Dims([*batch, *self[-2:-1], *(other[-1:] if len(other) > 1 else [])])


@rule("addmm", "baddbmm", "addmv")
def add_product(atoms: Atoms, sizes: Sizes, /, self: Dims, beta: Any = 1, alpha: Any = 1, **factors: Dims) -> Dims:
    one, two = factors.values()
    return broadcast(atoms, [self, matmul(atoms, sizes, one, other=two)])


@rule("einsum")
def einsum(atoms: Atoms, sizes: Sizes, /, equation: str, tensors: list[Dims], **_: Any) -> Dims | None:
    left, arrow, right = equation.replace(" ", "").partition("->")
    if "." in equation or any(equation.count(letter) == 1 for letter in left if letter.isalpha() and arrow):
        return None  # dots, and what is summed within one operand
    known: dict[str, Dim] = {}
    for term, tensor in zip(left.split(","), tensors, strict=True):
        for letter, dim in zip(term, tensor, strict=True):
            if atoms.length(known.setdefault(letter, dim)) == 1:
                known[letter] = dim
            elif atoms.length(dim) != 1:
                atoms.unify(known[letter], dim)
    letters = right if arrow else sorted(c for c in set(left) - {","} if left.count(c) == 1)
    return Dims(known[letter] for letter in letters)


@rule("scaled_dot_product_attention")
def attention(
    atoms: Atoms,
    sizes: Sizes,
    /,
    query: Dims,
    key: Dims,
    value: Dims,
    attn_mask: Any = None,
    is_causal: bool = False,
    **_: Any,
) -> Dims:
    atoms.unify(query[-1], key[-1])
    atoms.unify(key[-2], value[-2])
    if is_causal:
        atoms.fix([query[-2], key[-2]], PICKED.format(op="causal attention"))
    heads, groups = atoms.length(query[-3]) if len(query) > 2 else 1, atoms.length(key[-3]) if len(key) > 2 else 1
    atoms_of = broadcast(atoms, [Dims(key[:-2]), Dims(value[:-2])])
    if heads != groups:  # several heads of queries share one of keys
        parts = [atoms.new(groups), atoms.new(heads // groups)]
        atoms.unify(query[-3], atoms.product(parts))
        atoms.unify(key[-3], parts[0])
        atoms_of[-1] = query[-3]
    batch = broadcast(atoms, [Dims(query[:-2]), atoms_of])
    if isinstance(attn_mask, Dims):
        broadcast(atoms, [Dims([*batch, query[-2], key[-2]]), attn_mask])
    return Dims([*batch, query[-2], value[-1]])


# Convolutions


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def convolution(
    atoms: Atoms,
    sizes: Sizes,
    /,
    input: Dims,
    weight: Dims,
    bias: Any = None,
    groups: int = 1,
    transposed: Any = None,
    **_: Any,
) -> Dims:
    """The walk gives `transposed` for operations that have it in their name."""
    atoms.fix([*weight[2:], *input[2 - len(weight) :]], POSITIONS)
    unbatched = len(input) == len(weight) - 1
    channels = input[0 if unbatched else 1]
    each = atoms.new(groups)
    # The weight is [outputs, inputs of a group], or, transposed, [inputs, outputs of a group].
    atoms.unify(weight[0], atoms.product([each, atoms.new(atoms.length(weight[0]) // groups)]))
    across = atoms.product([each, weight[1]])
    atoms.unify(channels, weight[0] if transposed else across)
    made = across if transposed else weight[0]
    out = Dims([*([] if unbatched else input[:1]), made])
    if isinstance(bias, Dims):
        atoms.unify(bias[0], made)
    return Dims([*out, *(atoms.new(size, POSITIONS) for size in sizes[len(out) :])])


@rule(
    *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d")),
    "pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
)  # fmt: skip
def resized(atoms: Atoms, sizes: Sizes, /, **arguments: Any) -> Dims:
    """An operation that changes a dimension's size fixes the dimension; a window fixes it even if the size stays."""
    tensor = next(value for value in arguments.values() if isinstance(value, Dims))
    windows = (arguments.get(name) for name in ("kernel_size", "output_size", "scale_factors"))
    window = len(next(filter(None, windows), None) or arguments.get("pad", ())[::2])
    out = Dims()
    for i, (dim, size) in enumerate(zip(tensor, sizes, strict=True)):
        if size == atoms.length(dim) and i < len(sizes) - window:
            out.append(dim)
        else:
            atoms.fix([dim], POSITIONS)
            out.append(atoms.new(size, POSITIONS))
    return out


# Reductions and norms


@rule("sum", "mean", "amax", "amin", "var", "std", "prod", "logsumexp", "linalg_vector_norm", "any", "all")
def reduce(atoms: Atoms, sizes: Sizes, /, self: Dims, dim: Any = None, keepdim: bool = False, **_: Any) -> Dims:
    gone = range(len(self)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    gone = {d % max(len(self), 1) for d in gone}
    return Dims(ONE if i in gone else d for i, d in enumerate(self) if keepdim or i not in gone)


@rule("softmax", "log_softmax", "special_softmax", "special_log_softmax")
def softmax(atoms: Atoms, sizes: Sizes, /, self: Dims, **_: Any) -> Dims:
    return self


@rule("layer_norm", "rms_norm")
def layer_norm(atoms: Atoms, sizes: Sizes, /, input: Dims, weight: Any = None, bias: Any = None, **_: Any) -> Dims:
    return broadcast(atoms, [input, weight, bias])


@rule("batch_norm", "instance_norm", "group_norm")
def channel_norm(atoms: Atoms, sizes: Sizes, /, input: Dims, num_groups: int = 1, **others: Any) -> Dims:
    if num_groups > 1:
        parts = [atoms.new(num_groups), atoms.new(atoms.length(input[1]) // num_groups)]
        atoms.unify(input[1], atoms.product(parts))
    for vector in others.values():
        if isinstance(vector, Dims):
            atoms.unify(vector[0], input[1])
    return input


@rule("embedding")
def embedding(atoms: Atoms, sizes: Sizes, /, weight: Dims, indices: Dims, **_: Any) -> Dims:
    atoms.fix(weight[:1], "rows that are looked up by their number")
    return Dims([*indices, weight[1]])
