"""The logs of the graph passes of each model: one log for every compiled graph that contains sites of the model."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from topkast.passes.aten import PassLog, summary
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.site import Site

_LOGS: weakref.WeakKeyDictionary[Family, list[PassLog]] = weakref.WeakKeyDictionary()


def keep_log(log: PassLog, sites: Iterable[Site]) -> None:
    """Store the log of a compile with each model that has sites in the graph."""
    for family in {site.family for site in sites}:
        _LOGS.setdefault(family, []).append(log)


def passes_of(family: Family) -> dict[str, dict[str, Any]]:
    """The summary of all logs of a model, see :func:`topkast.passes.aten.summary`."""
    return summary(_LOGS.get(family, ()))
