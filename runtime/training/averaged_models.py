"""Averages of a sparse model: ``torch.optim.swa_utils.AveragedModel`` must average weights, not slots.

After a refresh, slot j of the compact values is another weight. So a copy that holds an average first takes the sets of
the model that it averages, which changes none of the copy's weights. Then all of θ is averaged. A weight outside B
counts with its value, which does not change there. The result is the average that a dense model would have, at every
step.
"""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn
from torch.optim.swa_utils import AveragedModel

from topkast.runtime.errors import ModelError
from topkast.runtime.state.refresh import copy_sets
from topkast.runtime.state.site_module import SiteModule


def update_parameters(self: AveragedModel, model: nn.Module) -> None:
    """Runs instead of ``AveragedModel.update_parameters`` if the object holds a converted model.

    Args:
        model: the model that is averaged, with the same sites.

    Raises:
        ModelError: the model has other sites.
    """
    mine, theirs = ([m for m in root.modules() if isinstance(m, SiteModule)] for root in (self.module, model))
    if [(s.name, s.geometry, s.n_bwd) for s in mine] != [(s.name, s.geometry, s.n_bwd) for s in theirs]:
        raise ModelError(
            f"update_parameters: the average has {len(mine)} sparse weights, the model {len(theirs)}, and they are not "
            "the same; make the AveragedModel after topkast.compile, of the model that it is updated with"
        )
    for site, other in zip(mine, theirs, strict=True):
        copy_sets(site, other)
        # The average has the model's clock, but no refresh is ever due: a forward with gradients must not change it.
        site.set_clock(other.step, other.step)
    with ExitStack() as stack:
        for site in [*mine, *theirs]:
            stack.enter_context(site.theta_as_parameters())
        type(self).update_parameters(self, model)
