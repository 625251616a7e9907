"""One linear layer to measure: its activations, its dense weight, and the same weight as values on random sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.kernels.candidates import KERNELS, candidates, launch
from topkast.runtime.layout import Geometry, Index, build_index
from topkast.runtime.planner import plan as planner
from topkast.runtime.reference.products import weight_grad
from topkast.tools.common.pairs import measure

# product -> what it is; the order in which a training step runs them
PRODUCTS = {"spmm": "forward", "spmm_t": "input gradient", "sddmm": "weight gradient"}


@dataclass(frozen=True)
class Layer:
    """Y = X W^T. x: [M, K], dy: [M, N], weight: [N, K] dense; values, index and geometry hold it on A and B."""

    x: Tensor
    dy: Tensor
    weight: Tensor
    values: Tensor
    index: Index
    geometry: Geometry

    def to(self, dtype: torch.dtype) -> Layer:
        """The same layer in another dtype."""
        x, dy, weight, values = (tensor.to(dtype) for tensor in (self.x, self.dy, self.weight, self.values))
        return Layer(x, dy, weight, values, self.index, self.geometry)

    def dense(self) -> list[Callable[[], Tensor]]:
        """The three products as PyTorch runs them for a dense layer."""
        return [lambda: self.x @ self.weight.T, lambda: self.dy @ self.weight, lambda: self.dy.T @ self.x]

    def sparse(self, impls: dict[str, str]) -> list[Callable[[], Tensor]]:
        """The products named in ``impls``, each through that kernel."""
        weight = (self.values, self.index, self.geometry)
        given = {
            "spmm": (self.x, *weight, None),
            "spmm_t": (self.dy, *weight),
            "sddmm": (self.dy, self.x, self.index, self.geometry),
        }
        return [partial(launch(impl, product), *given[product]) for product, impl in impls.items()]

    def impls(self, wanted: str | None) -> dict[str, str] | None:
        """Product -> kernel: ``wanted``, or the first that fits; None where ``wanted`` does not fit."""
        found = {}
        for product in PRODUCTS:
            operand = self.x if product == "spmm" else self.dy
            layouts = ((tuple(operand.shape), operand.stride()),)
            n_fwd = int((self.index.row_fwd - self.index.row_ptr[:-1]).sum())
            sizes = (self.geometry, n_fwd, self.index.cols.numel(), torch.get_num_threads(), operand.device)
            problem = planner.Problem(product, layouts, operand.dtype, *sizes)
            fitting = candidates(product, operand, self.geometry)
            if wanted not in (None, *fitting):
                return None
            found[product] = wanted or planner.worth_trying(problem, fitting)[0]
        return found


def impl_names() -> list[str]:
    """Kernels there are."""
    return list(KERNELS)


def random_index(geometry: Geometry, fwd: float, bwd: float, generator: torch.Generator) -> Index:
    """Nested sets drawn evenly, with exact counts."""
    n_fwd, n_bwd = (max(1, round(geometry.units * (1 - sparsity))) for sparsity in (fwd, bwd))
    order = torch.randperm(geometry.units, generator=generator, device=generator.device)
    sets = torch.zeros(2, geometry.units, dtype=torch.bool, device=generator.device)
    sets[0, order[:n_fwd]] = True
    sets[1, order[:n_bwd]] = True
    return build_index(sets[0].view(geometry.grid), sets[1].view(geometry.grid), n_bwd)


def layer_on(index: Index, geometry: Geometry, m: int, generator: torch.Generator) -> Layer:
    """A layer with these sets, everything else random; the dense weight lies as the original parameter would."""
    theta = torch.randn(geometry.shape, generator=generator, device=generator.device)
    matrix = theta.permute(geometry.perm).reshape(geometry.rows, geometry.cols)
    x = torch.randn(m, geometry.cols, generator=generator, device=generator.device)
    dy = torch.randn(m, geometry.rows, generator=generator, device=generator.device)
    return Layer(x, dy, matrix, weight_grad(theta, index, geometry), index, geometry)


def random_layer(
    shape: tuple[int, int, int], block: tuple[int, int], fwd: float, bwd: float, device: str | torch.device = "cpu"
) -> Layer:
    """A layer of shape (M, K, N) with random sets."""
    m, k, n = shape
    generator = torch.Generator(device).manual_seed(0)
    geometry = Geometry((n, k), (0, 1), 1, block)
    return layer_on(random_index(geometry, fwd, bwd, generator), geometry, m, generator)


def measure_layer(layer: Layer, impls: dict[str, str] | None, repeats: int, threads: int) -> dict[str, Any]:
    """Ratio of the layer's products in ``impls`` to the dense ones, together and one by one.

    Args:
        layer: what to run.
        impls: product -> kernel, in the order of a step; None where the wanted kernel does not fit.
        repeats: pairs.
        threads: torch's.
    """
    facts: dict[str, Any] = {"block": layer.geometry.block, "threads": threads, "impl": impls}
    if impls is None:
        return facts
    torch.set_num_threads(threads)
    pairs = measure(layer.dense()[: len(impls)], layer.sparse(impls), repeats, device=layer.x.device)
    parts = {PRODUCTS[name]: {"ratio": pairs.ratio(i), "seconds": pairs.seconds(i)} for i, name in enumerate(impls)}
    return facts | {"ratio": pairs.ratio(), "seconds": pairs.seconds(), "products": parts}


def block_name(block: tuple[int, int]) -> str:
    return f"{block[0]}x{block[1]}"
