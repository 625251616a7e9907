"""The kernels that can run a product. A kernel never changes the result's meaning, only the way of computing.

A new implementation is a module that has some of the functions of
:class:`topkast.runtime.reference.products.DenseProducts`. It is listed here with the cases that it fits.
``passes/aten/finish/choose_kernel.py`` calls :func:`candidates` and writes the chosen name into the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.layout import Geometry, Index
from topkast.runtime.native import bfloat16, convolution, densified, grouped, library, products
from topkast.runtime.reference.products import REFERENCE, ConvArgs
from topkast.runtime.reference.products import pack as reference_pack
from topkast.runtime.reference.products import unpack as reference_unpack
from topkast.runtime.triton import products as blocks
from topkast.runtime.triton import single, transient

PRODUCTS = (
    *("spmm", "spmm_t", "sddmm"),
    *("grouped_spmm", "grouped_spmm_t", "grouped_sddmm"),
    *("conv", "conv_input_grad", "conv_weight_grad"),
)


@dataclass(frozen=True)
class Kernel:
    """One implementation.

    Args:
        name: the name in the graph and in the report.
        products: the object that has the functions, under the names of the products.
        fits: (product, activations, geometry, arguments of a convolution or None) -> whether the implementation can run
            this product; the activations may be fake tensors.
    """

    name: str
    products: Any
    fits: Callable[[str, Tensor, Geometry, ConvArgs | None], bool]


NATIVE = SimpleNamespace(
    spmm=products.spmm,
    spmm_t=products.spmm_t,
    sddmm=products.sddmm,
    grouped_spmm=grouped.grouped_spmm,
    grouped_spmm_t=grouped.grouped_spmm_t,
    grouped_sddmm=grouped.grouped_sddmm,
    conv=convolution.conv,
    conv_input_grad=convolution.conv_input_grad,
    conv_weight_grad=convolution.conv_weight_grad,
)


def native_conv_refusal(operand: Tensor, geometry: Geometry, conv: ConvArgs) -> str | None:
    """Why the native kernels do not run this convolution; None if they do, or if the library was not built."""
    return None if library() is None else convolution.refusal(operand, geometry, conv)


def _native_fits(product: str, operand: Tensor, geometry: Geometry, conv: ConvArgs | None) -> bool:
    if conv is None:
        return products.fits(product, operand, geometry)
    return library() is not None and convolution.refusal(operand, geometry, conv) is None


def _matrices_only(
    fits: Callable[[str, Tensor, Geometry], bool],
) -> Callable[[str, Tensor, Geometry, ConvArgs | None], bool]:
    return lambda product, operand, geometry, conv: conv is None and fits(product, operand, geometry)


KERNELS = {
    kernel.name: kernel
    for kernel in [
        Kernel("triton", blocks, _matrices_only(blocks.fits)),
        Kernel("csr", single, _matrices_only(single.fits)),
        Kernel("bf16", bfloat16, _matrices_only(bfloat16.fits)),
        Kernel("native", NATIVE, _native_fits),
        Kernel("transient", transient.TRANSIENT, lambda product, x, geometry, conv: transient.fits(x)),
        Kernel("dense", densified.DENSE, lambda product, x, geometry, conv: densified.fits(x)),
        Kernel("reference", REFERENCE, lambda product, x, geometry, conv: True),
    ]
}


def candidates(product: str, operand: Tensor, geometry: Geometry, conv: ConvArgs | None = None) -> list[str]:
    """Names of the kernels that fit, in the order of the table; never empty.

    Args:
        product: one of :data:`PRODUCTS`.
        operand: the first activations of the product; may be a fake tensor.
        geometry: the geometry of the weight.
        conv: the arguments of a convolution; None for the other products.
    """
    return [kernel.name for kernel in KERNELS.values() if kernel.fits(product, operand, geometry, conv)]


def launch(kernel: str, product: str) -> Callable[..., Any]:
    """The kernel's function that runs ``product``."""
    return getattr(KERNELS[kernel].products, product)


def repeated(kernel: str, product: str, values: Tensor, index: Index, geometry: Geometry) -> Callable[[Tensor], Tensor]:
    """``spmm`` or ``spmm_t`` with one weight for many products in turn, as a recurrent layer has them: a dense kernel
    writes W_A once, before the first product."""
    if kernel in DENSE:
        dense = KERNELS[kernel].products.weight(values, index, geometry)
        matrix = dense.permute(geometry.perm).reshape(geometry.rows, geometry.cols)
        return lambda x: x @ (matrix.mT if product == "spmm" else matrix)
    run, bias = launch(kernel, product), (None,) if product == "spmm" else ()
    return lambda x: run(x, values, index, geometry, *bias)


# Kernels whose spmm can include a bias and an activation, with the dtypes that this works for; and the activations.
FUSING: dict[str, tuple[torch.dtype, ...]] = {"native": (torch.float32,), "triton": blocks.DTYPES, "csr": blocks.DTYPES}
SUMMING = ("bf16", "native")  # whose sddmm sums in float32, and can give that
FUSED_ACTIVATIONS = products.ACTIVATIONS
CSR_DENSITY = single.DENSITY  # above this share of single weights in a set, "csr" on a GPU is not measured

# Dense products, which first write W_A: in Triton, in native code, or in plain PyTorch.
DENSE = ("transient", "dense", "reference")


def _dense(operand: Tensor) -> Any:
    if transient.fits(operand):
        return transient.TRANSIENT
    return densified.DENSE if densified.fits(operand) else REFERENCE


def weight(values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """W_A, dense, computed in the fastest available way."""
    return _dense(values).weight(values, index, geometry)


def pack(x: Tensor, width: int) -> Tensor:
    """Convert rows to tiles in the fastest available way."""
    return (products.pack if densified.fits(x) and products.whole(width) else reference_pack)(x, width)


def unpack(tiles: Tensor) -> Tensor:
    """Convert tiles to rows in the fastest available way."""
    return (products.unpack if densified.fits(tiles) and products.whole(tiles.shape[2]) else reference_unpack)(tiles)


def weight_grad(grad: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """A dense gradient sampled at B, computed in the fastest available way."""
    return _dense(grad).weight_grad(grad, index, geometry)
