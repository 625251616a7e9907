"""The library of native kernels as the other rooms see it: where it lies, and whether it was built."""

from topkast.runtime.native import isa, library, path

__all__ = ["isa", "library", "path"]
