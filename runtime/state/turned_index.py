"""When a site keeps A's index by columns, see :mod:`topkast.runtime.kernels.turned`."""

from __future__ import annotations

from torch import Tensor

from topkast.runtime.kernels.turned import renewed
from topkast.runtime.state.sharding.shardable_site import ShardableSite


def renewed_turned(site: ShardableSite, turned: Tensor | None) -> Tensor | None:
    """The site's index by columns for its current sets, in the same memory as before if there was one.

    None for a site that gets no gradients, for a sharded site, which gathers its columns for each use, and for kernels
    that do not take such an index.

    Args:
        turned: the index by columns that the site has; None: it has none.
    """
    if site.for_inference or site.shard is not None or not site.index_is_whole:
        return None
    return renewed(turned, site.index, site.geometry, site.most_units_in_a, site.original.detach())
