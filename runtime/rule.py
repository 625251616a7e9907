"""When and how a site's sets are chosen again."""

from __future__ import annotations

from dataclasses import dataclass

# Share of an explored weight that one step takes away at most: with a rate like SGD's, lr * exploration_decay would
# wipe out what was explored, and turn its sign above 1.
MOST_DECAY = 0.25


@dataclass(frozen=True)
class Rule:
    """How a site's sets are chosen and renewed; see :func:`topkast.compile` for each field."""

    method: str = "topkast"
    refresh_every: int = 100
    refresh_in_background: bool = False
    stop_exploring_after: int | None = None
    explore: str = "topk"
    exploration_l2: float = 0.0
    exploration_decay: float = 30.0
    drop_fraction: float = 0.3
    balanced: bool = False
    reservoir: str = "device"
    seed: int = 0
