"""Straight-through magnitude pruning: A is the largest weights. Every weight is trained by the gradient at W_A, without
any penalty.

This is Top-KAST with a dense B and no penalty. The classic form chooses A at every step, ``refresh_every=1``.
"""

from __future__ import annotations

from .topkast import TopKAST


class MagnitudeSTE(TopKAST):
    name = "magnitude-ste"
    says = 'like ``"topkast"``, but with a dense B and without a penalty.'
    uses = ("refresh_every", "refresh_growth", "refresh_in_background", "stop_exploring_after")
    bwd = 0.0
