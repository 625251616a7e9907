"""How sets are chosen and renewed: Top-KAST and other methods, with the same state and the same kernels."""

from __future__ import annotations

from .gmp import GMP
from .magnitude_ste import MagnitudeSTE
from .method import Method
from .rigl import RigL
from .set import SET
from .set_state import SetState
from .static import Static, StaticMagnitude
from .topkast import TopKAST

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (TopKAST, Static, StaticMagnitude, SET, RigL, MagnitudeSTE, GMP)
}

__all__ = ["METHODS", "Method", "SetState"]
