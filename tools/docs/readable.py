"""Make the code of a graph readable: short names of operators and inputs, and no ends of lifetimes.

``torch.ops.aten.mm.default(a, b);  a = None`` becomes ``aten.mm(a, b)``. The inputs get the names of the parameters.
``*up`` stands for the index and the geometry of the weight ``up.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_KINDS = (  # what Dynamo calls an input, and what the listing calls it
    (re.compile(r"l_s\w*?_modules_(\w+?)_modules_sparse_state_\w+"), r"\1_index"),
    (re.compile(r"l_s\w*?_modules_(\w+?)_parameters_weight_"), r"\1_values"),
    (re.compile(r"l_s\w*?_modules_(\w+?)_parameters_(\w+?)_"), r"\1_\2"),
    (re.compile(r"l_(\w+?)_"), r"\1"),
)
_NUMBERS = r"[\[(][\d, ]+[\])]"
_SHORTER = (
    # the index, four tensors; the weight's shape, order of dimensions, how many of them form rows, block, blocks in A
    (re.compile(rf"(\w+)_index(?:, \1_index){{3}}, {_NUMBERS}, {_NUMBERS}, \d+, {_NUMBERS}, \d+"), r"*\1"),
    (re.compile(r"torch\.ops\.(\w+\.\w+)(?:\.\w+)?\("), r"\1("),
    (re.compile(r"pytree\.tree_unflatten\((\[.*\]), self\._out_spec\)"), r"\1"),
    (re.compile(r", None"), ""),  # the gradient of an input that has none
)


def renamed(inputs: Sequence[str]) -> dict[str, str]:
    """The short name of each input of a graph that Dynamo has captured; the parts of an index share a name."""
    names = {}
    for name in inputs:
        for pattern, short in _KINDS:
            found = pattern.fullmatch(name)
            if found is not None:
                names[name] = found.expand(short)
                break
    return names


def body(code: str, names: Mapping[str, str]) -> list[str]:
    """The lines of a graph's function.

    Args:
        code: as ``fx.Graph.python_code`` writes it.
        names: input -> the name to show.
    """
    lines = []
    for line in code.split("):\n", 1)[1].splitlines():
        line = re.sub(r";  .*= None$", "", line.strip())
        if not line or "tree_flatten_spec" in line or re.fullmatch(r"(l_\w+) = L_\w+", line):
            continue
        line = re.sub(r"\b(?:primals|tangents|l)_\w+", lambda found: names.get(found[0], found[0]), line)
        for pattern, short in _SHORTER:
            line = pattern.sub(short, line)
        lines.append(line)
    return lines
