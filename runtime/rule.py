"""When and how a site's sets are chosen again."""

from __future__ import annotations

from dataclasses import dataclass


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
