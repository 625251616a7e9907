"""Find the interchangeable neurons of a model: the dimensions that may be permuted together without a change of the
model's function. The model's graph shows them.

Permuting the outputs of one layer together with the inputs of those that read it (and with the bias, the norm and the
running statistics between) gives another set of weights for the same function. Hidden units, residual streams (all
layers that write to or read from it are one class), channels, groups of channels and attention heads (as units, with
the features inside of each) are such classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topkast.compiler.capture.trace import capture
from topkast.compiler.densify import densify
from topkast.runtime.errors import ModelError

from .dimension_rules import Dims
from .dimension_walk import Walk
from .dimensions import Dim, Segment

Permutations = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Interchangeable:
    """The result of :func:`interchangeable`. A dimension is a row of segments. A segment is a product of atoms,
    outermost first. An atom is a set of indices; all dimensions that contain the atom are permuted together.

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

    The graph comes from ``torch.export`` in the model's present mode. If an operation has no rule, the dimensions that
    it reads are fixed, with this reason. Dropout counts as equivariant, because its masks are random anyway.

    Args:
        model: any module, also a module that topkast has converted. The model is not run and not changed.
        example_inputs: as for :func:`topkast.compile`; None: the model's own ``dummy_inputs``.

    Raises:
        ModelError: ``model`` is no module, or could not be traced as a whole; the message gives the reason.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model: a {type(model).__name__}, must be a torch.nn.Module")
    plain = densify(model) if any("_topkast" in m.__dict__ for m in model.modules()) else model
    captured = capture(plain, example_inputs)
    if not captured.how.startswith("torch.export"):
        raise ModelError(
            f"model: read by {captured.how}, but interchangeable neurons are found in a graph of torch.export; pass "
            "example_inputs with which torch.export can trace it"
        )
    walk = Walk()
    walk.graph(captured.graphs[0])
    tensors = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    for name, tensor in tensors.items():
        if name not in walk.tensors:
            walk.tensors[name] = Dims(walk.atoms.new(n, "unused in the trace") for n in tensor.shape)
    return _result(walk)


def _result(walk: Walk) -> Interchangeable:
    atoms = walk.atoms
    dims = {name: tuple(atoms.normal(dim) for dim in found) for name, found in walk.tensors.items()}
    segments = {segment for found in dims.values() for dim in found for segment in dim}
    for segment in segments:
        for atom in segment:
            if segment.count(atom) > 1:
                atoms.reasons.setdefault(atom, "a dimension holds it twice")
    used = dict.fromkeys(atom for segment in sorted(segments) for atom in segment)
    sizes = {atom: atoms.size(atom) for atom in used if atom not in atoms.reasons}
    fixed = {atom: (atoms.size(atom), atoms.reasons[atom]) for atom in used if atom in atoms.reasons}
    return Interchangeable(dims, sizes, walk.inner(segments, sizes), fixed)
