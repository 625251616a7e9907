"""Permuted copies of a model, by what topkast.topology.interchangeable found."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from topkast.compiler.topology import Interchangeable


def permuted(model: nn.Module, found: Interchangeable, permutations: dict[int, np.ndarray]) -> nn.Module:
    """A copy of a plain model whose neurons are permuted: it computes the same function."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            tensor.copy_(found.permute(name, tensor, permutations))
    return twin


def random_permutations(found: Interchangeable, seed: int) -> dict[int, np.ndarray]:
    """One permutation for each class (for each index of the outer atom of an inner one), drawn evenly."""
    draw = np.random.default_rng(seed)
    made = {}
    for atom, n in found.sizes.items():
        rows = found.sizes[found.inner[atom]] if atom in found.inner else 1
        drawn = np.stack([draw.permutation(n) for _ in range(rows)])
        made[atom] = drawn if atom in found.inner else drawn[0]
    return made
