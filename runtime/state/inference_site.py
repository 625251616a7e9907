"""A site that holds A only, for a model that is loaded to be used and not trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from topkast.runtime.errors import ModelError
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.rule import Rule
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.content.parts import Parts

from .site_module import SiteModule


class InferenceSite(SiteModule):
    """A site whose B is A, without a reservoir. Every attempt to train, refresh or save it raises ModelError.

    Args:
        name: the parameter's name in the model.
        index: the index of A, in which every slot is a slot of A.
        geometry: how the weight is cut into units.
        rule: the rule by which the weight was trained. Nothing follows the rule any more.
        family: the mark of the model.
    """

    for_inference = True

    def __init__(self, name: str, index: Index, geometry: Geometry, rule: Rule, family: Family) -> None:
        nn.Module.__init__(self)
        units, nothing = index.cols.numel(), torch.empty(0, device=index.cols.device)
        self._define(name, geometry, units, units, rule.replaced(reservoir="device"), family)
        self._hold(index, nothing.to(torch.uint8), nothing)

    def use(self, owner: nn.Module, attribute: str) -> None:
        """Use the parameter ``owner.attribute``, of :attr:`value_shape`, as A's values."""
        self.attribute = attribute
        self.bind(owner)
        self._buffers["reservoir"] = self.reservoir.to(self.original.dtype)
        self._settle()

    def theta(self) -> Tensor:
        """Raises ModelError: θ outside A is not in memory."""
        raise self._refusal("all of θ")

    def parts(self) -> Parts:
        """Raises ModelError: whoever calls this wants to change the sets or θ."""
        raise self._refusal("a change of its sets or values")

    def check_trainable(self, wanted: str) -> None:
        """Raise ModelError.

        Args:
            wanted: what the caller wants of the site, for the message.
        """
        raise self._refusal(wanted)

    def _refusal(self, wanted: str) -> ModelError:
        return ModelError(
            f"{self.name}: {wanted} was asked for, but the model was loaded with inference=True and holds the forward "
            "set A only; the file still has everything: load it into a model made by topkast.compile or "
            "topkast.sparsify to train on"
        )
