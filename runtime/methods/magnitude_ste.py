"""Straight-through magnitude pruning: A the largest, every weight trained by the gradient at W_A, nothing held back.

It is Top-KAST with a dense B and no penalty; the classic form chooses A at every step, ``refresh_every=1``.
"""

from __future__ import annotations

from .topkast import TopKAST


class MagnitudeSTE(TopKAST):
    name = "magnitude-ste"
    says = 'like ``"topkast"``, but with a dense B and without a penalty.'
    uses = ("refresh_every", "refresh_in_background", "stop_exploring_after")
    bwd = 0.0
