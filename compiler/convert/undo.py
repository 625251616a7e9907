"""Record what a conversion changes, so that an error or Ctrl-C in the middle leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from topkast.runtime.kernels.theta import assemble
from topkast.runtime.registry import unregister
from topkast.runtime.state.site_module import SiteModule


class Undo:
    """Undoes one conversion.

    A dense weight is freed as soon as its site holds the values, so a conversion needs little more memory than the
    model. To undo, the weight is rebuilt from the site, bit for bit.

    Args:
        model: the model before the conversion.

    Attributes:
        closed: whether the conversion is too far to be undone; then it is finished instead.
    """

    def __init__(self, model: nn.Module) -> None:
        self.closed = False
        self._modules = [(module, module.__class__, dict(module.__dict__)) for module in model.modules()]
        # The tables of a module (parameters, hooks, ...) are changed in place, and hooks know them by identity.
        self._tables = [
            (value, value.copy())
            for _, _, content in self._modules
            for name, value in content.items()
            if name.startswith("_") and isinstance(value, (dict, set))
        ]
        self._parameters: list[tuple[nn.Parameter, SiteModule, Tensor | None, Callable[[], Tensor]]] = []

    def note(self, parameter: nn.Parameter, site: SiteModule) -> None:
        """Record a parameter before the site that was made from it takes its place."""
        stride = parameter.stride()

        def together() -> Tensor:
            index = site.index.to(site.home)
            theta = assemble(parameter.detach().to(site.home).view(-1), site.reservoir, index, site.geometry)
            return torch.empty_strided(theta.shape, stride, dtype=theta.dtype, device=parameter.device).copy_(theta)

        # Memory that others share stays allocated anyway, and must belong to the parameter again after an undo.
        shared = parameter.is_shared() or parameter.untyped_storage().nbytes() != parameter.nbytes
        memory = parameter.detach() if shared else None
        self._parameters.append((parameter, site, parameter.grad, together if memory is None else lambda: memory))

    @torch.no_grad()
    def back(self) -> None:
        """Make the model what it was. After an interrupt this can be called again."""
        for module, kind, content in self._modules:
            module.__class__ = kind
            module.__dict__.update(content)
            for name in [name for name in module.__dict__ if name not in content]:
                del module.__dict__[name]
        for table, entries in self._tables:
            table.clear()
            table.update(entries)
        for parameter, site, grad, dense in self._parameters:
            unregister(site)
            # A site that is a part was made from a parameter that only this conversion has.
            if parameter.shape != site.geometry.shape and not site.is_part:
                parameter.set_(dense())  # type: ignore[call-overload]
            parameter.grad = grad
