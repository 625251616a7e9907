"""The int8 kernels for AVX-512, with and without VNNI, on any processor: their intrinsics in plain C++.

The test compiles each kernel's own file. A header of the tests stands in for the compiler's intrinsics.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from ctypes import byref
from pathlib import Path

import numpy as np
import pytest
import torch

import topkast
from topkast.passes.onnx.blocks import encode
from topkast.runtime.native import Matrix, View
from topkast.runtime.reference.int8 import spmm_int8

COMPILER = os.environ.get("CXX", "g++")
NATIVE = Path(topkast.__file__).parent / "runtime" / "native"
STANDIN = Path(topkast.__file__).parent / "tests" / "support" / "emulated"
pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module", params=["vnni", "avx512"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp(request.param)
    kernels = (NATIVE / "int8" / f"int8_{request.param}.cpp").read_text()
    # Without the target the compiler has no AVX-512; the guard would leave the file empty on other processors.
    lines = [line for line in kernels.splitlines() if not line.startswith(("TARGET_", "#if", "#endif"))]
    assert len(lines) == len(kernels.splitlines()) - 4
    (folder / "kernels.cpp").write_text("\n".join(lines) + "\n")
    folders = [STANDIN, *(NATIVE / name for name in ("int8", "packing", "products", "machine"))]
    sources = [folder / "kernels.cpp", NATIVE / "int8" / "weight.cpp", STANDIN / "int8.cpp"]
    flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-Wno-psabi", "-fvisibility=hidden"]
    command = [COMPILER, *flags, f"-DKERNELS={request.param}"]
    includes = [f"-I{path}" for path in folders]
    subprocess.run([*command, *includes, *sources, "-o", folder / "emulated.so"], check=True)
    return ctypes.CDLL(str(folder / "emulated.so"))


@pytest.mark.parametrize("block", [(1, 1), (2, 1), (4, 1), (5, 1), (8, 1), (16, 1), (32, 32), (48, 1), (3, 5), (64, 2)])
def test_the_bits_are_those_of_the_reference(library: ctypes.CDLL, block: tuple[int, int]) -> None:
    rng = np.random.default_rng(block)
    rows, columns = 131, 203
    grid = -(-rows // block[0]), -(-columns // block[1])
    kept = rng.random(grid) < np.linspace(0, 1, grid[0])[:, None]
    spread = np.kron(kept, np.ones(block, bool))[:rows, :columns]
    weight = np.where(spread, rng.integers(-128, 128, (rows, columns)), 0).astype(np.int8)
    found = encode(weight.astype(np.float32), block)
    values, row_ptr = found.values.astype(np.int8).reshape(-1), found.row_ptr
    cols = found.cols.astype(np.uint16)
    scale, bias = rng.random(rows).astype(np.float32), rng.standard_normal(rows).astype(np.float32)
    at = [array.ctypes.data for array in (row_ptr, row_ptr[1:], cols)]
    index = Matrix(None, *at, rows, columns, len(cols), *block, 2)
    for m in (1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 63, 64, 65, 130):
        x = rng.standard_normal((m, columns)).astype(np.float32)
        y = np.zeros((m, rows), np.float32)
        views = [View(a.ctypes.data, m, n, n, 1, 0) for a, n in ((x, columns), (y, rows))]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (values, scale, bias)]
        library.product(byref(index), *pointers, *map(byref, views))
        plain = spmm_int8(*map(torch.from_numpy, (x, weight, scale, bias)))
        assert np.array_equal(y, plain.numpy()), f"{block} {m}"
