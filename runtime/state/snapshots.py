"""A copy that nothing was written to since it was made is no average but a snapshot.

A snapshot too must move when its source's sets change, for nobody knows what it will be. When it is used, it first
takes back the sets that it was made with: it computes what it did then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from .copies import alike_copies
from .fingerprint import unchanged
from .parts import Change, Parts
from .refresh import take_sets
from .relayout import with_sets_of
from .site import Site
from .streaming import at_home


@torch._dynamo.disable
@torch.no_grad()
def restore_snapshots(sites: Iterable[Site]) -> None:
    """These are about to be used: snapshots among them take back the sets that they were made with."""
    for site in sites:
        if site.snapshot is not None:
            if unchanged(site.original, site.print):
                at_home([site], _restored)
            site.forget_snapshot()


@contextmanager
def copies_take_sets(sites: Iterable[Site]) -> Iterator[None]:
    """Within, the sites' sets are overwritten from outside; their copies take the sets at the end."""
    pairs = [(site, copy) for site in sites for copy in alike_copies(site)]
    yield
    for site, copy in pairs:
        take_sets(copy, site)


def _restored(site: Site, parts: Parts) -> Change:
    assert site.snapshot is not None
    change = with_sets_of(site, parts, site.snapshot)
    change.fields |= site.snapshot.fields
    return change
