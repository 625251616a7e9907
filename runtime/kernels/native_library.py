"""Facts about the library of native kernels for the other rooms: its path, and whether it was built."""

from topkast.runtime.native import isa, library, path

__all__ = ["isa", "library", "path"]
