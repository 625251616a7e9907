"""The tables of operations for following parameters: operations that move a weight, and operations that use a weight.

Names are normalised: aten.linear.default, torch.nn.functional.linear and a captured torch._C._nn.linear are one row. An
operation that no table names counts as "another operation".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


def _names(text: str) -> set[str]:
    return set(text.split())


# Give another view of the same numbers; evaluated on meta tensors.
MOVERS = _names("""
    t numpy_t mt mh h adjoint transpose swapaxes swapdims permute movedim moveaxis view view_as reshape
    reshape_as reshape_alias unsafe_view flatten unflatten unsqueeze squeeze expand expand_as broadcast_to chunk
    tensor_split split split_with_sizes unsafe_split unsafe_chunk unbind getitem slice select narrow cat concat
    stack
""")
# Keep the shape: casts and copies.
KEEPERS = _names("""
    to to_copy float bfloat16 half double type type_as contiguous clone detach alias cpu cuda requires_grad
    lift_fresh
""")
# Look up along one dimension: whole matrices out of a stack of them, or the rows of a table.
GATHERS = {"index", "index_select"}
# Read the shape or the type only.
IGNORED = _names("""
    size sym_size sym_numel sym_stride stride dim ndimension numel nelement element_size len is_floating_point
    is_complex is_contiguous assert_tensor_metadata zeros_like ones_like empty_like rand_like randn_like
    new_zeros new_ones new_empty new_full new_tensor get_device data_ptr
""")
EMBEDDINGS = {"embedding", "embedding_bag", "embedding_renorm"}

_CONV = {1: "conv", "weight": "conv"}
_CONV_T = {1: "conv_t", "weight": "conv_t"}
_PRODUCT = {0: "left", "input": "left", "self": "left", 1: "right", "other": "right", "mat2": "right", "vec2": "right"}
_ADD_PRODUCT = {1: "left", "mat1": "left", "batch1": "left", 2: "right", "mat2": "right", "batch2": "right"}
# op -> argument position or keyword -> how the weight there is contracted:
# "left"/"right": as the first/second matrix of a product; "rows": [outputs, contracted]; the rest: as named
WEIGHTS: dict[str, dict[Any, str]] = {
    "linear": {1: "rows", "weight": "rows"},
    **{name: _PRODUCT for name in ("matmul", "mm", "bmm", "mv", "grouped_mm", "grouped_mm_fallback")},
    "rmatmul": {0: "right", 1: "left"},
    **{name: _ADD_PRODUCT for name in ("addmm", "baddbmm", "addbmm", "addmv")},
    "einsum": {i: "einsum" for i in range(16)},
    "tensordot": {0: "tensordot", 1: "tensordot"},
    "bilinear": {2: "rows", "weight": "rows"},
    **{f"conv{n}d": _CONV for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _CONV_T for n in (1, 2, 3)},
    "convolution": _CONV,
    **{name: {2: "rnn", 3: "rnn"} for name in ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")},
    **{name: {2: "rnn", 3: "rnn"} for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "multi_head_attention_forward": {
        **{slot: "rnn" for slot in (5, 11, "in_proj_weight", "out_proj_weight")},
        **{slot: "rnn" for slot in ("q_proj_weight", "k_proj_weight", "v_proj_weight")},
    },
    "native_multi_head_attention": {5: "rnn", 7: "rnn"},
    "transformer_encoder_layer_fwd": {3: "rnn", 5: "rnn", 14: "rnn", 16: "rnn"},
}


def op_name(node: fx.Node) -> str:
    """The bare name of what a node calls: aten._to_copy.default -> "to_copy", the method "matmul" -> "matmul"."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
    else:
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.strip("_").lower()


def flat(value: Any) -> list[Any]:
    """The leaves of nested lists, tuples and dicts, in order."""
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in flat(item)]
    if isinstance(value, dict):
        return flat(list(value.values()))
    return [value]


def slots(node: fx.Node) -> list[tuple[Any, fx.Node]]:
    """(position or keyword, node) of every argument; the members of a list all have the list's position."""
    named: list[tuple[Any, Any]] = [*enumerate(node.args), *node.kwargs.items()]
    if op_name(node) == "einsum":  # operands come as arguments or as one list: number them
        named = list(enumerate(flat(node.args[1:])))
    return [(slot, leaf) for slot, value in named for leaf in flat(value) if isinstance(leaf, fx.Node)]


def example(node: fx.Node) -> Any:
    """The value that a trace recorded for a node; None if there is no record."""
    return node.meta.get("val", node.meta.get("example_value"))


def value_of(argument: fx.Node) -> Any:
    """The known value of another argument: an int, or a meta tensor of its shape. ValueError if nothing is known."""
    value = example(argument)
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, device="meta", dtype=value.dtype)
    if isinstance(value, (int, torch.SymInt)):
        return int(value) if isinstance(value, int) else 0  # an index found at run time: any matrix stands for it
    raise ValueError(f"nothing known of {argument}")


@dataclass
class Contraction:
    """Dimensions of the weight's view that a product sums over and those it only indexes; work; `image`: the input of
    a convolution over 2 or 3 spatial dimensions."""

    contracted: set[int]
    batch: set[int]
    macs: float | None = None
    depthwise: bool = False
    image: fx.Node | None = None


def contraction(node: fx.Node, op: str, kind: str, slot: Any, view: torch.Tensor) -> Contraction | None:
    """How `node` contracts the weight `view` in argument `slot`; None if `node` is no product with a weight."""
    n, out = view.dim(), _numel(node)
    if kind in ("conv", "conv_t"):
        return _convolution(node, op, kind, view)
    if kind == "rnn":
        # The list of an RNN's weights has their biases too; learned first states come at other positions.
        # lstm(data, batch_sizes, hx, params, ...) of packed sequences has the state where the others have weights.
        packed = len(node.args) > 3 and isinstance(node.args[3], (list, tuple))
        is_list = op in ("lstm", "gru", "rnn_tanh", "rnn_relu")
        if n < 2 or (is_list and slot != (3 if packed else 2)):
            return None
        steps = _numel(node.args[0], but=-1)
        return Contraction(set(range(1, n)), set(), None if steps is None else steps * view.numel())
    if kind == "rows":
        use = Contraction(set(range(1, n)), set())
    elif kind == "left":
        use = Contraction({n - 1}, set(range(n - 2)))
    elif kind == "right":
        use = Contraction({max(n - 2, 0)}, set(range(n - 2)))
    elif kind == "einsum":
        letters = _letters(node, slot, n)
        if letters is None:
            return None
        use = Contraction(*letters)
    else:  # tensordot: dims is a number, or two lists
        dims: Any = node.kwargs.get("dims", node.args[2] if len(node.args) > 2 else 2)
        if not isinstance(dims, int):
            pair: Any = (dims, node.args[3]) if len(node.args) > 3 else dims
            summed = {int(d) % n for d in pair[slot]}
        else:
            summed = set(range(n - dims, n)) if slot == 0 else set(range(dims))
        use = Contraction(summed, set())
    if not use.contracted:
        return None
    use.macs = None if out is None else float(out * math.prod(view.shape[d] for d in use.contracted))
    return use


def _convolution(node: fx.Node, op: str, kind: str, view: torch.Tensor) -> Contraction:
    def argument(position: int, name: str, default: Any) -> Any:
        return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

    generic = op == "convolution"
    groups = argument(8 if generic else 6, "groups", 1)
    transposed = kind == "conv_t" or (generic and bool(argument(6, "transposed", False)))
    # Each input element of a transposed convolution, each output element of a plain one, meets one slice of weights.
    elements = _numel(argument(0, "input", None) if transposed else node)
    macs = None if elements is None else elements * view.numel() / view.shape[0]
    dims = set(range(view.dim())) - {1 if transposed else 0}
    depthwise = groups != 1 and (view.shape[0] == groups if transposed else view.shape[1] == 1)
    image = argument(0, "input", None) if view.dim() >= 4 and not transposed else None
    return Contraction(dims, set(), macs, depthwise, image)


def _letters(node: fx.Node, operand: int, n: int) -> tuple[set[int], set[int]] | None:
    """(contracted, batch) dimensions of one operand of an einsum."""
    if not isinstance(node.args[0], str):
        return None
    left, arrow, right = node.args[0].replace(" ", "").partition("->")
    terms = left.split(",")
    mine, others = terms[operand], "".join(terms[:operand] + terms[operand + 1 :])
    if "..." in mine:  # the dots stand for as many dimensions as remain, all of them in the output
        mine = mine.replace("...", "." * (n - len(mine) + 3))
    if not arrow:
        right = "." + "".join(c for c in set(left) if left.count(c) == 1)
    right += "."
    contracted = {i for i, c in enumerate(mine) if c not in right}
    if not any(mine[i] in others for i in contracted):
        return None  # nothing is summed with the other operand: elementwise
    return contracted, {i for i, c in enumerate(mine) if c in right and c in others}


def _numel(node: Any, but: int | None = None) -> int | None:
    """Elements of a node's (first) value, without dimension `but`; None where shapes are not known."""
    value = example(node) if isinstance(node, fx.Node) else None
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    if not isinstance(value, torch.Tensor) or not all(isinstance(s, int) for s in value.shape):
        return None
    return math.prod(value.shape) // (value.shape[but] or 1 if but is not None else 1)
