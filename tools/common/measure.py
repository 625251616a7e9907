"""What is measured about a run: bytes held, weight FLOPs, paired step times, churn of the sets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

Masks = Mapping[str, tuple[Tensor, Tensor]]


def memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of the tensors that live from step to step, counted one by one. Activations are not among them.

    `index + reservoir` is whatever else a checkpoint of the model holds: nothing for a dense GPT-2.
    """
    parameters = list(model.parameters())  # a tied weight comes once
    known = {p.data_ptr() for p in parameters}
    rest = {t.data_ptr(): t.nbytes for t in model.state_dict().values() if torch.is_tensor(t)}
    counted = {
        "values": sum(p.nbytes for p in parameters),
        "gradient": sum(p.grad.nbytes for p in parameters if p.grad is not None),
        "optimizer": sum(t.nbytes for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)),
        "index + reservoir": sum(size for pointer, size in rest.items() if pointer not in known),
    }
    return counted | {"total": sum(counted.values())}


def weight_flops(sizes: Mapping[str, int], masks: Masks) -> dict[str, int]:
    """FLOPs per token of the products with weights, from the weights' element counts and the sets A and B.

    Forward and input gradient cost 2 FLOPs an element of A, the weight gradient 2 an element of B; a weight that is
    not in `masks` is dense in all three. Attention's products of activations are left out: they are the same.
    """
    forward = training = 0
    for name, size in sizes.items():
        a, b = (int(mask.sum()) for mask in masks[name]) if name in masks else (size, size)
        forward += 2 * a
        training += 2 * (a + a + b)
    return {"forward": forward, "training": training}


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of one value, three times that value."""
    values = list(values)
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def churn(before: Masks, after: Masks) -> tuple[float, float]:
    """Share of A, and of B, over all sites, that `before` did not hold."""
    new, held = [0, 0], [0, 0]
    for name, sets in after.items():
        for i, mask in enumerate(sets):
            new[i] += int((mask & ~before[name][i]).sum())
            held[i] += int(mask.sum())
    return new[0] / held[0], new[1] / held[1]
