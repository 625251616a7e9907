"""Give memory that the process holds but does not need back to the system; do nothing where that is not possible."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor


def trim_heap() -> None:
    """Give back freed memory that the C library keeps.

    glibc keeps freed blocks of up to 32 MiB for later. When a checkpoint of 16 layers of 16 MiB was read into a sparse
    model, 330 MiB were kept beside 86 MiB in use.
    """
    if sys.platform == "linux" and hasattr(_library(), "malloc_trim"):
        _library().malloc_trim(0)


def leave_pages(mapped: Tensor) -> None:
    """Let the file alone hold the content of a tensor that is mapped from the file. The next access reads the file.

    Args:
        mapped: a contiguous tensor of ``torch.from_file(..., shared=True)`` that begins where the file begins.
    """
    if sys.platform == "linux":  # elsewhere the advice may destroy what was not yet written
        _library().madvise(ctypes.c_void_p(mapped.data_ptr()), ctypes.c_size_t(mapped.nbytes), mmap.MADV_DONTNEED)


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
