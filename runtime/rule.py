"""When and how a site's sets are chosen again."""

from __future__ import annotations

from dataclasses import dataclass

# Share of an explored weight that one step takes away at most: with a rate like SGD's, lr * exploration_decay would
# wipe out what was explored, and turn its sign above 1.
MOST_DECAY = 0.25

# The decay where none is asked for, over the size of a weight in A: a gradient that pulls one way moves a weight by lr
# a step under Adam, and this decay holds it at a quarter of that size, whatever the scale of the model is.
DECAY = 4.0


@dataclass(frozen=True)
class Rule:
    """How a site's sets are chosen and renewed; see :func:`topkast.compile` for each field."""

    method: str = "topkast"
    refresh_every: int = 100
    refresh_in_background: bool = False
    stop_exploring_after: int | None = None
    explore: str = "topk"
    exploration_l2: float = 0.0
    exploration_decay: float | None = None
    drop_fraction: float = 0.3
    balanced: bool = False
    reservoir: str = "device"
    seed: int = 0
