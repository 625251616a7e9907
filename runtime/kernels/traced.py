"""A product as a graph of ATen operators and launches of Triton kernels, for Inductor to generate code from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from topkast.runtime.triton.launching import traced

from .candidates import launch


def traceable(kernel: str, operand: Tensor) -> bool:
    """Whether a product with these activations can be traced: the block kernels in Triton, on a GPU.

    "transient" stays an operator: in the open, the W_A of the forward and of the backward would become one value, which
    is kept in between, and the memory saving is gone. "csr" sorts inside its products.
    """
    return kernel == "triton" and operand.device.type == "cuda"


def trace(kernel: str, product: str, mode: Any, arguments: Callable[..., tuple[Any, ...]], fakes: Sequence[Any]) -> Any:
    """The graph that computes a product.

    Args:
        kernel: the name of a kernel for which :func:`traceable` holds.
        product: one of :data:`topkast.runtime.kernels.candidates.PRODUCTS`.
        mode: the fake mode of the tensors.
        arguments: the tensors of the graph's inputs -> the arguments of the kernel's function.
        fakes: fake tensors, the inputs of the graph.

    Returns:
        a :class:`torch.fx.Graph` in which each launch is a node that writes to its arguments.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    def run(*tensors: Tensor) -> Any:
        return launch(kernel, product)(*arguments(*tensors))

    with mode, torch.no_grad(), traced():
        module: fx.GraphModule = make_fx(run, select_decomp_table())(*fakes)
    return module.graph
