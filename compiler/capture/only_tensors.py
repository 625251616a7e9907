"""Call a model for its tensors only, because ``torch.export`` refuses outputs of classes that it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class OnlyTensors(nn.Module):
    """A model whose output is the list of all tensors in the output of another model.

    The models of transformers return a ``DynamicCache``. ``torch.export`` traced a GPT-2 to its end and then refused
    that class; Dynamo, the next way, took ten times as long.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return tensors_in(self.model(*args, **kwargs))

    def name(self, name: str) -> str:
        """The name that a parameter or buffer has in the other model."""
        return name.removeprefix("model.")


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested sequences, mappings and attributes of objects, each once."""
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen or isinstance(one, (str, bytes, type, nn.Module, torch.dtype, torch.device)):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, (list, tuple, set, frozenset)):
            waiting += one
        else:
            waiting += getattr(one, "__dict__", {}).values()
    return found
