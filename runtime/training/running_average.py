"""An average of a sparse model's weights that stays correct across refreshes and can run as a model."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from topkast.runtime.errors import ConfigError, ModelError
from topkast.runtime.state.model import find, sites


class Averaged(AveragedModel):
    """A ``torch.optim.swa_utils.AveragedModel`` that has a reference to its model.

    :func:`topkast.averaged` makes the object.

    ``average(inputs)`` runs the averaged model. ``average.module`` is a converted model for ``topkast.save``,
    ``densify``, ``export`` and ``dense_state_dict``. ``average.state_dict()`` is the state for a checkpoint.
    """

    def __init__(self, model: nn.Module, decay: float | None, device: torch.device | None) -> None:
        average = get_swa_multi_avg_fn() if decay is None else get_ema_multi_avg_fn(decay)
        super().__init__(model, device, multi_avg_fn=average)
        self._source = weakref.ref(model)

    def update(self) -> None:
        """Add the current model to the average, after an optimizer step. The first update copies the model.

        Raises:
            ModelError: the model no longer exists.
        """
        model = self._source()
        if model is None:
            raise ModelError("update: the model that is averaged is there no more; keep a reference to it")
        self.update_parameters(model)


def averaged(model: Any, decay: float | None = 0.999, device: Any = None) -> Averaged:
    """An average of a model's weights. It averages all of θ, as for a dense model, and has the model's own sets.

    Use this function instead of a list of tensors, for example diffusers' ``EMAModel``. After a refresh, slot j of this
    list is another weight, so the list would average different weights with each other. Instead of
    ``EMAModel(model.parameters())`` and ``ema.step(model.parameters())``::

        average = topkast.averaged(model, decay=0.999)
        ...
        optimizer.step()
        average.update()

    To evaluate or save, use ``average(inputs)`` and ``average.module`` instead of ``store``, ``copy_to`` and
    ``restore``.

    Args:
        model: a converted model, or a wrapper around it. The average does not change the model or keep it alive.
        decay: the share of the old average that an update keeps, 0 <= decay < 1; None: the mean of all updates.
        device: the device of the average; None: the model's device.

    Raises:
        ConfigError: ``decay`` has a value that is not allowed.
        ModelError: the model was not converted, or ``fully_shard`` has sharded it.
    """
    if decay is not None:
        number = isinstance(decay, (int, float)) and not isinstance(decay, bool) and math.isfinite(decay)
        if not number or not 0 <= decay < 1:
            raise ConfigError(f"decay={decay!r}: must be a number with 0 <= decay < 1, or None for the mean")
    root, _ = find(model)
    for site in sites(model).values():
        site.refuse_shard("topkast.averaged")
    return Averaged(root, decay, device)
