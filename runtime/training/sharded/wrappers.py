"""What a converted model is put into, and what such a wrapper must do besides for its sites.

torch tells of every module that becomes part of another one. So a user's program needs no line of its own for any of
these.
"""

from __future__ import annotations

from types import MethodType

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from topkast.runtime.state.copies import carrying
from topkast.runtime.state.site import Site
from topkast.runtime.training.averaged_models import update_parameters

from .data_parallel import equalise
from .refused import refuse_uneven


def on_registration(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """The hook: ``parent.name = child``."""
    if name != "module" or child is None or not isinstance(parent, (AveragedModel, DistributedDataParallel)):
        return
    sites = [module for module in child.modules() if isinstance(module, Site)]
    if not sites:
        return
    if isinstance(parent, AveragedModel):
        parent.update_parameters = MethodType(update_parameters, parent)  # type: ignore[method-assign]
    else:
        for site in sites:
            site.unshare()
        with carrying(sites):
            equalise(parent, child)
        refuse_uneven(parent)
