"""The model's report says what a pass did to the graphs of the model."""

from __future__ import annotations

from torch import nn

import topkast


def pass_counts(model: nn.Module, name: str) -> tuple[dict[str, int], dict[str, int]]:
    """The rewrites of a pass by kind and its refusals by reason; none if no graph of the model was compiled."""
    entry = topkast.report(model).passes.get(name, {})
    return entry.get("matches", {}), entry.get("refusals", {})
