"""The axes that vary, as a trace found them: names for the file, limits, and sizes to try."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import SymInt, Tensor

from topkast.runtime.errors import ExportError

from .axes import Axis


@dataclass
class Sizes:
    """The dynamic sizes of a program's inputs.

    Args:
        names: for each input {axis: the axis' name in the file}.
        trials: shapes of all inputs for which the program must be correct.
        notes: limits that the model's code sets.
    """

    names: list[dict[int, str]]
    trials: list[list[list[int]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sizes(
    program: torch.export.ExportedProgram, tensors: list[Tensor], asked: list[dict[int, Axis]], inputs: list[str]
) -> Sizes:
    """Read from ``program``, which was traced with ``tensors``, the sizes of the axes in ``asked``.

    Raises:
        ExportError: the model fixes an axis that must vary, needs equal sizes of axes with two names, or does not
            accept all sizes within the limits that the caller set.
    """
    return _Reader(program, tensors, asked).read(inputs)


class _Reader:
    def __init__(
        self, program: torch.export.ExportedProgram, tensors: list[Tensor], asked: list[dict[int, Axis]]
    ) -> None:
        nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
        self.shapes = [[_size(dim) for dim in nodes[name].meta["val"].shape] for name in names]
        self.ranges, self.asked = program.range_constraints, asked
        self.examples = dict[Any, int]()  # the size of each dynamic axis: expression -> number in the examples
        self.axes = dict[Any, list[Axis]]()  # the same expression -> the axes that were asked for
        for tensor, shape, axes in zip(tensors, self.shapes, asked, strict=True):
            for number, dim in enumerate(shape):
                if not isinstance(dim, int):
                    self.examples[dim] = tensor.shape[number]
                    self.axes.setdefault(dim, []).extend([axes[number]] if number in axes else [])

    def read(self, inputs: list[str]) -> Sizes:
        for shape, axes in zip(self.shapes, self.asked, strict=True):
            for number, axis in axes.items():
                self._hold(axis, shape[number])
        called = self._called(inputs)
        named = [{i: called[dim] for i, dim in enumerate(s) if not isinstance(dim, int)} for s in self.shapes]
        notes = [
            f"{called[size]} is at most {high}: the model's code takes no larger"
            for size, (_, high) in ((size, self._range(size)) for size in self.examples)
            if high is not None and all(axis.high is None for axis in self.axes[size])
        ]
        return Sizes(named, self._trials(called), list(dict.fromkeys(notes)))

    def _hold(self, axis: Axis, dim: Any) -> None:
        """Record an axis; refuse an axis that cannot vary as asked."""
        if not axis.must:
            return
        low, high = (dim, dim) if isinstance(dim, int) else self._range(dim)
        if low == high:
            raise ExportError(
                f"{axis.where}{f': {axis.name!r}' if axis.name else ''}: the model's code fixes this axis at {low}; "
                "leave it out, or give torch.export.Dim.AUTO, which allows that. If another input has the same axis, "
                "give it the same name there"
            )
        wanted = axis.low or low
        if low > wanted or (high is not None and axis.high is not None and high < axis.high):
            raise ExportError(
                f"{axis.where}: sizes of {wanted} to {'any' if axis.high is None else axis.high} are asked for, the "
                f"model's code takes {low} to {'any' if high is None else high}"
            )

    def _range(self, size: Any) -> tuple[int, int | None]:
        """(smallest, largest) size that the model's code accepts. torch always gives 2; a run shows whether 1 works."""
        found = self.ranges.get(size)
        if found is None:
            return 1, None
        return int(found.lower) if found.lower > 2 else 1, int(found.upper) if found.upper.is_Integer else None

    def _called(self, inputs: list[str]) -> dict[Any, str]:
        """A name for each size: the name that was asked for, or a name made from the first input with that size."""
        called = dict[Any, str]()
        for size, axes in self.axes.items():
            names = {axis.name: axis for axis in axes if axis.name is not None}
            if len(names) > 1:
                (one, at), (other, there) = list(names.items())[:2]
                raise ExportError(
                    f"{there.where}: the model takes {other!r} and {one!r} (at {at.where}) for one size; give both "
                    "axes the same name"
                )
            called |= dict.fromkeys([size] if names else [], next(iter(names), ""))
        for label, shape in zip(inputs, self.shapes, strict=True):
            for number, dim in enumerate(shape):
                if not isinstance(dim, int) and dim not in called:
                    name = f"{label}_{number}"
                    while name in called.values():
                        name += "_"
                    called[dim] = name
        return called

    def _trials(self, called: dict[Any, str]) -> list[list[list[int]]]:
        """All inputs' shapes, once with every dynamic size one larger, and once with the smallest allowed sizes."""
        symbols = [size for size in self.examples if size.is_Symbol]
        if any(size.free_symbols - set(symbols) for size in self.examples):
            return []  # an axis' size depends on a symbol that is no axis' size
        larger, least = dict[str, int](), dict[str, int]()
        for size in symbols:
            name, example = called[size], self.examples[size]
            (low, high), axes = self._range(size), self.axes[size]
            low = max([low, *(axis.low for axis in axes if axis.low is not None)])
            grown = example + 1 if high is None or example < high else max(low, example - 1)
            larger[name] = min(grown, larger.get(name, grown))
            least[name] = max(low, least.get(name, low))
        found = []
        for values in (larger, least):
            of_symbols = {size: values[called[size]] for size in symbols}
            if of_symbols != {size: self.examples[size] for size in symbols}:
                found.append([[_value(dim, of_symbols) for dim in shape] for shape in self.shapes])
        return found


def _size(dim: int | SymInt) -> Any:
    """A size as torch's expression of symbols; a number if the model's code has fixed the size."""
    expr = dim.node.expr if isinstance(dim, SymInt) else dim
    return int(expr) if isinstance(expr, int) or expr.is_number else expr


def _value(dim: Any, values: dict[Any, int]) -> int:
    return dim if isinstance(dim, int) else int(dim.subs(values))
