"""The names of a file's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from topkast.runtime.errors import ConfigError


def file_names(
    inputs: Sequence[str], outputs: Sequence[str], input_names: Any, output_names: Any, notes: list[str]
) -> tuple[list[str], list[str]]:
    """(names of the inputs, names of the outputs) in the file.

    A graph cannot hold an input and an output of one name. If the model returns a tensor under the name of an argument,
    the output gets another name, and a note says so.

    Args:
        inputs, outputs: the model's own names.
        input_names, output_names: the names that the user wants, in order; None: the model's own.
        notes: notes for the user; this function adds to them.

    Raises:
        ConfigError: a name is no text, is empty or occurs twice, or the number of names is wrong.
    """
    taken = _checked("input_names", inputs, input_names)
    found = _checked("output_names", outputs, output_names)
    if both := sorted(set(taken) & set(found)) if output_names is not None else []:
        raise ConfigError(f"output_names: {', '.join(map(repr, both))} is the name of an input too")
    for i, name in enumerate(found):
        while name in taken or name in found[:i]:
            name += "_out"
        if name != found[i]:
            notes.append(f"the output {found[i]!r} is called {name!r} in the file: an input has its name")
            found[i] = name
    return taken, found


def _checked(argument: str, own: Sequence[str], given: Any) -> list[str]:
    if given is None:
        return list(own)
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(n, str) and n for n in given):
        raise ConfigError(f"{argument}={given!r}: must be a list of names, or None")
    if len(given) != len(own):
        raise ConfigError(f"{argument}: {len(given)} names for {len(own)}, which are {', '.join(own)}")
    if twice := sorted({name for name in given if list(given).count(name) > 1}):
        raise ConfigError(f"{argument}: {', '.join(map(repr, twice))} occurs twice")
    return list(given)
