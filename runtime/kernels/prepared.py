"""The native products as compiled code calls them: each with a layout that was known when the code was made."""

from topkast.runtime.native.prepared import KINDS, Layout, run
from topkast.runtime.native.products import ACTIVATIONS

__all__ = ["ACTIVATIONS", "KINDS", "Layout", "run"]
