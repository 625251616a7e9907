"""Parameter groups of a converted model: weight decay for matrices, including sparse weights, and for nothing else."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from topkast.runtime.errors import ConfigError
from topkast.runtime.state.model import find, sites

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


def param_groups(model: Any, lr: float | Tensor, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: ``torch.optim.AdamW(topkast.param_groups(model, 3e-4, 0.1))``.

    Rules that use a list of names or the number of dimensions may miss the values of a sparse weight. This function
    puts them into one group with the matrices, like the dense weights that they replace.

    Args:
        model: a converted model, or a wrapper around it.
        lr: the learning rate of both groups, not negative; a schedule may change it later, as in any group.
        weight_decay: the decay of the sparse weights, and of the dense parameters with two dimensions or more
            (embeddings too); not negative. Biases, parameters of norms and parameters with fewer dimensions get 0.

    Returns:
        At most two dicts with ``params``, ``lr`` and ``weight_decay``; the group with decay comes first. Every
        parameter that requires a gradient is in one of the groups, once, in the model's order. An empty group is left
        out.

    Raises:
        ConfigError: ``lr`` or ``weight_decay`` is negative or not a finite number.
        ModelError: the model was not converted.
    """
    _check("lr", lr)
    _check("weight_decay", weight_decay)
    root, _ = find(model)
    sparse = {id(site.original) for site in sites(root).values()}
    norms = {id(p) for module in root.modules() if isinstance(module, NORMS) for p in module.parameters(False)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in root.named_parameters():
        if not parameter.requires_grad:
            continue
        bias = name.endswith("bias") or name.rpartition(".")[2].startswith("bias")
        matrix = parameter.ndim >= 2 and not bias and id(parameter) not in norms
        (decayed if id(parameter) in sparse or matrix else plain).append(parameter)
    groups = [(decayed, float(weight_decay)), (plain, 0.0)]
    return [{"params": params, "lr": lr, "weight_decay": decay} for params, decay in groups if params]


def _check(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
    if not number or isinstance(value, bool) or not math.isfinite(float(value)) or float(value) < 0:
        raise ConfigError(f"{name}={value!r}: must be a finite number that is not negative")
