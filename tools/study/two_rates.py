"""The optimizer of a run: matrices at one rate, the rest (norms, biases, embeddings) at its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import topkast

from .run_fields import Run


class Both:
    """Two optimizers that step as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """What both hold of each parameter."""
        return {parameter: held for part in self.parts for parameter, held in part.state.items()}

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()


Optimizer = torch.optim.Optimizer | Both


def groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights of linear layers and convolutions, sparse or not, and the rest."""
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    # A sparse layer's ``weight`` is W_A; what is trained, the values of B, has the parameter's place.
    known = {id(layer._parameters["weight"]) for layer in layers}
    every = list(model.parameters())
    return [p for p in every if id(p) in known], [p for p in every if id(p) not in known]


def make_optimizer(run: Run, model: nn.Module) -> Any:
    """The optimizer of the run, at its peak rates: an optimizer of torch, or two that step as one."""
    if run.optimizer == "nanogpt":  # its config/train_shakespeare_char.py: no decay of what has one axis
        flat = [p for p in model.parameters() if p.ndim < 2]
        decayed: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": flat, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(decayed, lr=run.lr, betas=(0.9, 0.99), weight_decay=0.1)
    parts: Any
    own: dict[str, Any] = {"weight_decay": run.weight_decay}
    if run.lr_rest is None and run.optimizer != "muon":  # one group, as the runs had that are stored
        parts = model.parameters()
    else:
        matrices, rest = groups(model)
        parts = [{"params": matrices}, {"params": rest, "lr": run.lr_rest or run.lr}]
        if run.inputs is not None:
            given = topkast.param_groups(model, run.lr, run.weight_decay, run.inputs)
            own_rates = {id(p): group["lr"] for group in given for p in group["params"]}
            parts = [*({"params": [p], "lr": own_rates[id(p)]} for p in matrices), parts[1]]
    if run.optimizer == "muon":
        muon = torch.optim.Muon(parts[0]["params"], lr=run.lr, adjust_lr_fn="match_rms_adamw", **own)
        return Both(muon, torch.optim.AdamW(parts[1]["params"], lr=parts[1]["lr"], **own))
    if run.optimizer == "sgd":
        return torch.optim.SGD(parts, lr=run.lr, momentum=0.9, **own)
    return torch.optim.AdamW(parts, lr=run.lr, **own)
