"""How sets are chosen and renewed: Top-KAST and other methods, with the same state and the same kernels."""

from __future__ import annotations

from topkast.runtime.reference.dense_gradient import Rows

from .method import Method
from .registered import METHODS, register_method
from .set_state import SetState

__all__ = ["METHODS", "Method", "Rows", "SetState", "register_method"]
