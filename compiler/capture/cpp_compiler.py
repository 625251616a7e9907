"""Check that Inductor has the C++ compiler that is needed on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

MISSING = (
    "no C++ compiler was found, which backend='inductor' needs on the CPU, so graphs run with 'aot_eager': the same "
    "sparse products, without generated code between them. Install g++ or clang++ (Debian: apt install g++), or start "
    "Python with CXX set to one"
)
_missed: list[str] = []  # not empty once a compiler was missing and the warning was given


def lacks_compiler(inputs: Sequence[Any], options: dict[str, Any] | None) -> bool:
    """Whether Inductor cannot compile a graph because there is no C++ compiler. The first time, a warning says so.

    Args:
        inputs: the inputs of the graph. If an input is not on the CPU, Inductor itself checks which compiler it needs.
        options: Inductor's options, which may name a compiler.
    """
    if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in inputs):
        return False
    if has_compiler(options):
        return False
    if not _missed:
        _missed.append(MISSING)
        warnings.warn(f"topkast: {MISSING}", stacklevel=2)
    return True


def has_compiler(options: dict[str, Any] | None = None) -> bool:
    """Whether Inductor finds a C++ compiler.

    Args:
        options: Inductor's options, which may name a compiler. None: Inductor's own.
    """
    from torch._inductor import config, cpp_builder, exc

    try:
        with config.patch(options or {}):
            cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return False
    return True


def missed_compiler() -> bool:
    """Whether a graph of this process was compiled without Inductor because there was no C++ compiler."""
    return bool(_missed)
