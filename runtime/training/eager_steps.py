"""Notice a training step in which nothing of a compiled model ran compiled.

Dynamo leaves to Python what it cannot or may not compile: the result is right, and slow. A gradient of a weight counts
as compiled if it comes from a graph that went through our passes, which name a reason wherever they left the weight
dense; so evaluation does not count, and a step of which any part was compiled is none of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from topkast.runtime.state.registry import alive
from topkast.runtime.state.site import Site

EAGER = ("read gradient", "reference", "eager")
GRADIENTS = ("read gradient", "input gradient", "weight gradient")


class Watch:
    """What is known of a compiled model's steps; its sites hold it as ``watch``, its record too.

    Args:
        backend: what the model was compiled with.

    Attributes:
        explain: says why nothing was compiled in the last step; None for a copy, which nobody has compiled.
        entered: how often a compiled callable was called since the last step.
        failed: the last error that a backend raised.
        told: what was warned of, which is done once.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.explain: Callable[[], str] | None = None
        self.entered = 0
        self.failed: str | None = None
        self.told: str | None = None
        self._seen: dict[str, tuple[int, int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return Watch(self.backend)

    def __getstate__(self) -> dict[str, Any]:
        return {**Watch(self.backend).__dict__}

    def step(self, sites: Iterable[Site]) -> None:
        """An optimizer step is over.

        Args:
            sites: those of the model.
        """
        eager = compiled = 0
        for site in sites:
            now, before = gradients(site), self._seen.get(site.name, (0, 0))
            eager += now[0] - before[0]
            compiled += now[1] - before[1]
            self._seen[site.name] = now
        if eager and not compiled:
            why = self.explain() if self.explain else COPY
            self.told = f"compiled with backend={self.backend!r}, the model trained a step eagerly: {why}"
            warnings.warn(f"topkast: {self.told}", stacklevel=2)
        self.entered = 0


COPY = (
    "it is a copy, which torch does not compile with the original; call its compile(backend='topkast'), once, to train "
    "it compiled"
)


def gradients(site: Site) -> tuple[int, int]:
    """How many gradients a site got (eagerly, from compiled graphs)."""
    compiled = sum(runs for (product, _, why), runs in site.ran.items() if product in GRADIENTS and why != "eager")
    return site.ran[EAGER], compiled


def notice_eager_step(sites: Iterable[Site]) -> None:
    """An optimizer has stepped these: see whether their models ran compiled, if they are to."""
    watches = {id(watch): watch for site in sites if (watch := site.__dict__.get("watch")) and watch.told is None}
    for watch in watches.values():
        watch.step([site for site in alive() if site.__dict__.get("watch") is watch])
