"""What tests of the CUDA kernels in Triton's interpreter share."""

from __future__ import annotations

import pytest
import torch

from topkast.runtime import triton as package

INTERPRETED = [
    pytest.mark.skipif(not package.available(), reason="Triton is not installed"),
    pytest.mark.skipif(
        not package.interpreted(), reason="there is a GPU: tests/runtime/triton/test_cuda.py runs the kernels on it"
    ),
    # Of a float32 that overflows numpy warns, a GPU does not: what comes of it is compared.
    pytest.mark.filterwarnings("ignore:overflow encountered in:RuntimeWarning"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
