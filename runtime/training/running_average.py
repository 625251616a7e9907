"""An average of a sparse model's weights that is right across refreshes, and ready to run."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from topkast.runtime.errors import ConfigError, ModelError
from topkast.runtime.state.model import find


class Averaged(AveragedModel):
    """A ``torch.optim.swa_utils.AveragedModel`` that knows the model it averages; :func:`averaged` makes it.

    ``average(inputs)`` runs it, ``average.module`` is a converted model for ``topkast.save``, ``densify``, ``export``
    and ``dense_state_dict``, and ``average.state_dict()`` is its state for a checkpoint.
    """

    def __init__(self, model: nn.Module, decay: float | None, device: torch.device | None) -> None:
        average = get_swa_multi_avg_fn() if decay is None else get_ema_multi_avg_fn(decay)
        super().__init__(model, device, multi_avg_fn=average)
        self._source = weakref.ref(model)

    def update(self) -> None:
        """Average the model as it is now, after an optimizer step. The first update copies it.

        Raises:
            ModelError: the model is there no more.
        """
        model = self._source()
        if model is None:
            raise ModelError("update: the model that is averaged is there no more; keep a reference to it")
        self.update_parameters(model)


def averaged(model: Any, decay: float | None = 0.999, device: Any = None) -> Averaged:
    """An average of a model's weights: that of all of θ, as a dense model would have it, with the model's own sets.

    For what keeps a list of tensors, as diffusers' ``EMAModel`` does: slot j of such a list is another weight after a
    refresh, so the list averages weights with each other. Instead of ``EMAModel(model.parameters())`` and
    ``ema.step(model.parameters())``::

        average = topkast.averaged(model, decay=0.999)
        ...
        optimizer.step()
        average.update()

    and to evaluate or save, ``average(inputs)`` and ``average.module`` instead of ``store``, ``copy_to`` and
    ``restore``.

    Args:
        model: a converted model, or a wrapper of one. It is not changed, nor kept alive.
        decay: the share of the old average that an update keeps, 0 <= decay < 1; None: the mean of all updates.
        device: where the average is kept; None: where the model is.

    Raises:
        ConfigError: ``decay`` is outside of what is allowed.
        ModelError: the model was not converted.
    """
    if decay is not None:
        number = isinstance(decay, (int, float)) and not isinstance(decay, bool) and math.isfinite(decay)
        if not number or not 0 <= decay < 1:
            raise ConfigError(f"decay={decay!r}: must be a number with 0 <= decay < 1, or None for the mean")
    root, _ = find(model)
    return Averaged(root, decay, device)
