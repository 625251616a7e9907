"""A copy is a snapshot, not an average, if nothing was written to the copy since it was made.

A snapshot too must change its sets when its source does, because its later use is not known. Before a snapshot is used,
it first gets back the sets that it was made with. So it computes the same results as at the time of the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from topkast.runtime.state.change.copies import alike_copies
from topkast.runtime.state.change.relayout import with_sets_of
from topkast.runtime.state.change.streaming import at_home
from topkast.runtime.state.content.fingerprint import unchanged
from topkast.runtime.state.content.parts import Change, Parts

from .refresh import copy_sets
from .site import Site


@torch._disable_dynamo
@torch.no_grad()
def restore_snapshots(sites: Iterable[Site]) -> None:
    """Before sites are used: give back to each snapshot among them the sets that it was made with."""
    for site in sites:
        if site.snapshot is not None:
            if unchanged(site.original, site.print):
                at_home([site], _restored)
            site.forget_snapshot()


@contextmanager
def pass_sets_to_copies(sites: Iterable[Site]) -> Iterator[None]:
    """Inside the ``with``, other code overwrites the sites' sets; at the end the copies of the sites get these sets."""
    pairs = [(site, copy) for site in sites for copy in alike_copies(site)]
    yield
    for site, copy in pairs:
        copy_sets(copy, site)


def _restored(site: Site, parts: Parts) -> Change:
    assert site.snapshot is not None
    change = with_sets_of(site, parts, site.snapshot)
    change.fields |= site.snapshot.fields
    return change
