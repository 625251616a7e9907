"""Which neurons of a model are interchangeable: the dimensions that may be permuted together without changing what it
computes, read off its graph.

Permuting the outputs of one layer together with the inputs of those that read it (and with the bias, the norm and the
running statistics between) gives another set of weights for the same function. Hidden units, residual streams (all
layers that write to or read from it are one class), channels, groups of channels and attention heads (as units, with
the features inside of each) are such classes.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from topkast.runtime.errors import ModelError
from topkast.runtime.state import sites

from .densify import densify
from .dim_rules import RULES, Dims, pointwise
from .dims import Atoms, Dim, Segment
from .optable import IGNORED, op_name
from .trace import Traced, capture

Permutations = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Interchangeable:
    """What :func:`interchangeable` found. A dimension is a row of segments, a segment a product of atoms, outermost
    first; an atom is a set of indices that are permuted as one wherever it occurs.

    Attributes:
        dims: name of each parameter and buffer -> its dimensions.
        sizes: atom -> number of its indices, for the free ones; each of them is one class.
        inner: a free atom that only occurs right inside of another free one, as the features of a head do -> that one.
            It may be permuted differently for each index of the outer one.
        fixed: atom -> why it may not be permuted, for the others that occur.
    """

    dims: dict[str, tuple[Dim, ...]]
    sizes: dict[int, int]
    inner: dict[int, int]
    fixed: dict[int, tuple[int, str]]

    def places(self, atom: int) -> list[str]:
        """Where an atom occurs, such as ``"0.weight:0"`` for the first dimension of that parameter."""
        return [
            f"{name}:{d}"
            for name, dims in self.dims.items()
            for d, dim in enumerate(dims)
            if any(atom in segment for segment in dim)
        ]

    def size(self, atom: int) -> int:
        return self.sizes[atom] if atom in self.sizes else self.fixed[atom][0]

    def count(self, segment: Segment) -> int:
        """How many indices a segment has."""
        return int(np.prod([self.size(atom) for atom in segment], dtype=np.int64))

    def index(self, dim: Dim, permutations: Permutations) -> np.ndarray:
        """Where each index of a permuted dimension comes from.

        Args:
            dim: of :attr:`dims`.
            permutations: atom -> int array [size], the old index at each new place; for an atom of :attr:`inner`
                [size of the outer atom, size], a row for each new index of the outer one. What is missing stays.
        """
        found, start = [], 0
        for segment in dim:
            places = np.zeros((), np.int64)
            for atom in segment:
                n = self.size(atom)
                places = places[..., None] * n + permutations.get(atom, np.arange(n))
            found.append(places.reshape(-1) + start)
            start += places.size
        return np.concatenate(found)

    def permute(self, name: str, tensor: Tensor, permutations: Permutations) -> Tensor:
        """The parameter or buffer of that name with all of its dimensions permuted."""
        for d, dim in enumerate(self.dims[name]):
            if any(atom in permutations for segment in dim for atom in segment):
                tensor = tensor.index_select(d, torch.from_numpy(self.index(dim, permutations)).to(tensor.device))
        return tensor

    def __str__(self) -> str:
        lines = []
        for atom, size in self.sizes.items():
            nested = f" (within each of {self.places(self.inner[atom])[0]})" if atom in self.inner else ""
            lines.append(f"{size} interchangeable{nested}: {', '.join(self.places(atom))}")
        lines += [f"{size} fixed, {why}: {', '.join(self.places(atom))}" for atom, (size, why) in self.fixed.items()]
        return "\n".join(lines)


def interchangeable(model: nn.Module, example_inputs: Any = None) -> Interchangeable:
    """Find the dimensions of a model's parameters and buffers that may be permuted together.

    The graph is that of ``torch.export`` in the model's present mode. An operation without a rule fixes what it reads,
    with that as the reason. Dropout counts as equivariant: its masks are drawn anew anyway.

    Args:
        model: any module, or one that topkast has converted. It is not run and not changed.
        example_inputs: as for :func:`topkast.compile`; None: the model's own ``dummy_inputs``.

    Raises:
        ModelError: it could not be traced whole, with the reason.
    """
    plain = densify(model) if any("_topkast" in m.__dict__ for m in model.modules()) else model
    captured = capture(plain, example_inputs)
    if not captured.how.startswith("torch.export"):
        raise ModelError(
            f"model: interchangeable neurons are found in the graph of torch.export, but it was read by {captured.how}; "
            "pass example_inputs with which torch.export can trace it"
        )
    walk = _Walk()
    walk.graph(captured.graphs[0])
    tensors = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    for name, tensor in tensors.items():
        if name not in walk.tensors:
            walk.tensors[name] = Dims(walk.atoms.new(n, "unused in the trace") for n in tensor.shape)
    return walk.result()


class _Walk:
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
        name, sizes, read = op_name(node), _sizes(node.meta.get("val")), self._dims(node)
        if name in IGNORED or sizes is None:
            return self._fresh(node, "made of sizes alone")
        free = [dim for dim in read if not self.atoms.fixed(dim)]
        if not free:
            return self._fresh(node, next((self.atoms.reasons[a] for d in read for a in self.atoms.atoms(d)), "a constant"))
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
        except (IndexError, KeyError, StopIteration, TypeError, ValueError):  # a form of the call the rule does not know
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
                return self.env.get(value)
            return [known(item) for item in value] if isinstance(value, (list, tuple)) else value

        return {name: known(value) for name, value in given.items()}

    def result(self) -> Interchangeable:
        atoms = self.atoms
        dims = {name: tuple(atoms.normal(dim) for dim in found) for name, found in self.tensors.items()}
        segments = {segment for found in dims.values() for dim in found for segment in dim}
        for segment in segments:
            for atom in segment:
                if segment.count(atom) > 1:
                    atoms.reasons.setdefault(atom, "a dimension holds it twice")
        used = dict.fromkeys(atom for segment in sorted(segments) for atom in segment)
        sizes = {atom: atoms.size(atom) for atom in used if atom not in atoms.reasons}
        fixed = {atom: (atoms.size(atom), atoms.reasons[atom]) for atom in used if atom in atoms.reasons}
        return Interchangeable(dims, sizes, self._inner(segments, sizes), fixed)

    def _inner(self, segments: set[Segment], sizes: dict[int, int]) -> dict[int, int]:
        """Atoms that stand right inside of one other free atom in every tensor of the model, and beside it in every
        value of the graph."""
        outer: dict[int, set[int | None]] = {}
        for segment in segments:
            for before, atom in zip((None, *segment), segment, strict=False):
                outer.setdefault(atom, set()).add(before)
        found = {
            atom: next(iter(before))
            for atom, before in outer.items()
            if atom in sizes and len(before) == 1 and next(iter(before)) in sizes
        }
        for value in _values(self.env):
            seen = {atom for dim in value for atom in self.atoms.atoms(dim)}
            for atom in [a for a, around in found.items() if a in seen and around not in seen]:
                del found[atom]
        return {atom: around for atom, around in found.items() if around is not None and around not in found}


def _values(env: dict[fx.Node, Any]) -> Iterator[Dims]:
    for value in env.values():
        for part in value if type(value) is tuple else (value,):
            if isinstance(part, Dims):
                yield part


def _sizes(value: Any) -> Any:
    """Sizes of a tensor as a list; a tuple of them for several; None for what is no tensor."""
    if isinstance(value, Tensor):
        return list(value.shape) if all(isinstance(n, int) for n in value.shape) else None
    if isinstance(value, (tuple, list)):
        return tuple(map(_sizes, value))
    return None


def permuted(model: nn.Module, found: Interchangeable, permutations: Permutations) -> nn.Module:
    """A copy of a plain model whose neurons are permuted: it computes the same function."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            tensor.copy_(found.permute(name, tensor, permutations))
    return twin


def random_permutations(found: Interchangeable, seed: int) -> dict[int, np.ndarray]:
    """One permutation for each class (for each index of the outer atom of an inner one), drawn evenly."""
    draw = np.random.default_rng(seed)
    made = {}
    for atom, n in found.sizes.items():
        rows = found.sizes[found.inner[atom]] if atom in found.inner else 1
        drawn = np.stack([draw.permutation(n) for _ in range(rows)])
        made[atom] = drawn if atom in found.inner else drawn[0]
    return made
