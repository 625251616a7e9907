"""Products whose activations lie as tiles [M / width, n, width]: the native kernels compute on them."""

from topkast.runtime.native.products import pack, sddmm, spmm, spmm_t, width

PRODUCTS = {"spmm": spmm, "spmm_t": spmm_t, "sddmm": sddmm}

__all__ = ["PRODUCTS", "pack", "width"]
