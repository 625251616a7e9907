"""Averages of a sparse model: ``torch.optim.swa_utils.AveragedModel`` averages weights, not slots.

After a refresh slot j of the compact values is another weight. So a copy that holds an average first takes the sets of
the model that it averages, by which none of its weights changes; then all of θ is averaged. A weight outside B counts
with the value at which it stands still. The result is the average that a dense model would have, at every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim.swa_utils import AveragedModel

from topkast.runtime.errors import ModelError
from topkast.runtime.state.refresh import take_sets
from topkast.runtime.state.site import Site


def update_parameters(self: AveragedModel, model: nn.Module) -> None:
    """Stands before ``AveragedModel.update_parameters`` on one that holds a converted model.

    Args:
        model: what is averaged, with the same sites.

    Raises:
        ModelError: it has other sites.
    """
    mine, theirs = ([m for m in root.modules() if isinstance(m, Site)] for root in (self.module, model))
    if [(s.name, s.geometry, s.n_bwd) for s in mine] != [(s.name, s.geometry, s.n_bwd) for s in theirs]:
        raise ModelError(
            f"update_parameters: the average has {len(mine)} sparse weights, the model {len(theirs)}, and they are not "
            "the same; make the AveragedModel after topkast.compile, of the model that it is updated with"
        )
    for site, other in zip(mine, theirs, strict=True):
        take_sets(site, other)
        # Its clock is the model's, but no refresh is ever due: forwards with gradients leave an average alone.
        site.step = site.refreshed_at = other.step
    with _theta_alone([*mine, *theirs]):
        type(self).update_parameters(self, model)


@contextmanager
def _theta_alone(sites: list[Site]) -> Iterator[None]:
    """Within, all of θ is a site's parameters, and it has no buffers: an average of an index would be none."""
    hidden = [site._buffers for site in sites]
    try:
        for site in sites:
            site._parameters["outside"] = nn.Parameter(site.reservoir, requires_grad=False)
            site._buffers = {}
        yield
    finally:
        for site, buffers in zip(sites, hidden, strict=True):
            site._parameters.pop("outside", None)
            site._buffers = buffers
