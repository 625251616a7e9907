"""Parameter groups of a converted model: weight decay for matrices, including sparse weights, and for nothing else."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from topkast.runtime.errors import ConfigError
from topkast.runtime.state.model import find, sites

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


def param_groups(
    model: Any, lr: float | Tensor, weight_decay: float, inputs: float | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimizer: ``torch.optim.AdamW(topkast.param_groups(model, 3e-4, 0.1))``.

    Rules that use a list of names or the number of dimensions may miss the values of a sparse weight. This function
    puts them into one group with the matrices, like the dense weights that they replace.

    Args:
        model: a converted model, or a wrapper around it.
        lr: the learning rate of all groups, not negative; a schedule may change it later, as in any group.
        weight_decay: the decay of the sparse weights, and of the dense parameters with two dimensions or more
            (embeddings too); not negative. Biases, parameters of norms and parameters with fewer dimensions get 0.
        inputs: the number of inputs of an output in A at which ``lr`` was found, above 0. A sparse weight then gets
            ``lr`` times this number over its own: one rate serves models of every width and sparsity (SµPar,
            arXiv 2405.15743). Other parameters keep ``lr``. None: all have ``lr``.

    Returns:
        Dicts with ``params``, ``lr`` and ``weight_decay``: at most two, and with ``inputs`` one more for each number of
        inputs; groups with decay come first. Every parameter that requires a gradient is in one of the groups, once, in
        the model's order. An empty group is left out.

    Raises:
        ConfigError: ``lr`` or ``weight_decay`` is negative or not a finite number, or ``inputs`` is not above 0.
        ModelError: the model was not converted.
    """
    _check("lr", lr)
    _check("weight_decay", weight_decay)
    root, _ = find(model)
    if inputs is not None:
        _check("inputs", inputs)
        if float(inputs) == 0:
            raise ConfigError(f"inputs={inputs!r}: must be above 0")
    sparse = {id(site.original): site.n_fwd * site.geometry.unit / site.geometry.rows for site in sites(root).values()}
    norms = {id(p) for module in root.modules() if isinstance(module, NORMS) for p in module.parameters(False)}
    decayed: dict[float, list[nn.Parameter]] = {1.0: []}  # by the factor of their rate
    plain: list[nn.Parameter] = []
    for name, parameter in root.named_parameters():
        if not parameter.requires_grad:
            continue
        bias = name.endswith("bias") or name.rpartition(".")[2].startswith("bias")
        matrix = parameter.ndim >= 2 and not bias and id(parameter) not in norms
        if id(parameter) in sparse:
            factor = 1.0 if inputs is None else inputs / sparse[id(parameter)]
            decayed.setdefault(factor, []).append(parameter)
        else:
            (decayed[1.0] if matrix else plain).append(parameter)
    groups = [*((params, factor, float(weight_decay)) for factor, params in decayed.items()), (plain, 1.0, 0.0)]
    return [
        {"params": params, "lr": lr if factor == 1 else lr * factor, "weight_decay": decay}
        for params, factor, decay in groups
        if params
    ]


def _check(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
    if not number or isinstance(value, bool) or not math.isfinite(float(value)) or float(value) < 0:
        raise ConfigError(f"{name}={value!r}: must be a finite number that is not negative")
