"""Notice a training step in which no part of a compiled model ran compiled.

If Dynamo cannot or must not compile code, the code runs in Python: the result is correct but slow. A gradient of a
weight counts as compiled if it comes from a graph that went through our passes. If the passes leave a weight dense,
they name a reason. So evaluation does not count. A step counts as eager only if no part of it was compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from topkast.runtime.state.find_sites import alive
from topkast.runtime.state.site_module import SiteModule

EAGER = ("read gradient", "reference", "eager")
GRADIENTS = ("read gradient", "input gradient", "weight gradient")


class Watch:
    """A record of a compiled model's steps. The model's sites and its record hold it as ``watch``.

    Args:
        backend: the backend that the model was compiled with.

    Attributes:
        explain: returns why nothing was compiled in the last step; None for a copy, because a copy is not compiled.
        entered: how often a compiled callable was called since the last step.
        failed: the last error that a backend raised.
        warning: the text of the warning, which is given once; None if no warning was given.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.explain: Callable[[], str] | None = None
        self.entered = 0
        self.failed: str | None = None
        self.warning: str | None = None
        self._seen: dict[str, tuple[int, int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return Watch(self.backend)

    def __getstate__(self) -> dict[str, Any]:
        return {**Watch(self.backend).__dict__}

    def step(self, sites: Iterable[SiteModule]) -> None:
        """Check a complete optimizer step, and warn if the model ran eagerly.

        Args:
            sites: the sites of the model.
        """
        eager = compiled = 0
        for site in sites:
            now, before = gradients(site), self._seen.get(site.name, (0, 0))
            eager += now[0] - before[0]
            compiled += now[1] - before[1]
            self._seen[site.name] = now
        if eager and not compiled:
            why = self.explain() if self.explain else COPY
            self.warning = f"compiled with backend={self.backend!r}, the model trained a step eagerly: {why}"
            warnings.warn(f"topkast: {self.warning}", stacklevel=2)
        self.entered = 0


COPY = (
    "it is a copy, which torch does not compile with the original; call its compile(backend='topkast'), once, to train "
    "it compiled"
)


def gradients(site: SiteModule) -> tuple[int, int]:
    """The number of a site's gradients: (computed eagerly, computed by compiled graphs)."""
    compiled = sum(runs for (product, _, why), runs in site.ran.items() if product in GRADIENTS and why != "eager")
    return site.ran[EAGER], compiled


def notice_eager_step(sites: Iterable[SiteModule]) -> None:
    """After an optimizer step on these sites: check whether their models ran compiled, if they were compiled."""
    watches = {id(watch): watch for site in sites if (watch := site.__dict__.get("watch")) and watch.warning is None}
    for watch in watches.values():
        watch.step([site for site in alive() if site.__dict__.get("watch") is watch])
