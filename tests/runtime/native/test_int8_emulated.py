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
from topkast.runtime.native import Conv, Matrix, View
from topkast.runtime.reference.int8 import conv_int8, spmm_int8

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
    folders = [STANDIN, *(NATIVE / name for name in ("int8", "packing", "products", "machine", "sets"))]
    others = [NATIVE / "int8" / "weight.cpp", NATIVE / "sets" / "positions.cpp", STANDIN / "int8.cpp"]
    sources = [folder / "kernels.cpp", *others]
    flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-Wno-psabi", "-fvisibility=hidden"]
    command = [COMPILER, *flags, f"-DKERNELS={request.param}"]
    includes = [f"-I{path}" for path in folders]
    subprocess.run([*command, *includes, *sources, "-o", folder / "emulated.so"], check=True)
    return ctypes.CDLL(str(folder / "emulated.so"))


def random_weight(rows: int, columns: int, block: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """int8 [rows, columns], the first rows empty and the last ones full; and values, row_ptr, cols, scale, bias."""
    rng = np.random.default_rng(block)
    grid = -(-rows // block[0]), -(-columns // block[1])
    kept = rng.random(grid) < np.linspace(0, 1, grid[0])[:, None]
    spread = np.kron(kept, np.ones(block, bool))[:rows, :columns]
    weight = np.where(spread, rng.integers(-128, 128, (rows, columns)), 0).astype(np.int8)
    found = encode(weight.astype(np.float32), block)
    values, cols = found.values.astype(np.int8).reshape(-1), found.cols.astype(np.uint16)
    scale, bias = rng.random(rows).astype(np.float32), rng.standard_normal(rows).astype(np.float32)
    return weight, [values, found.row_ptr, cols, scale, bias]


def matrix(parts: list[np.ndarray], shape: tuple[int, int], block: tuple[int, int]) -> Matrix:
    _, row_ptr, cols, *_ = parts
    at = [array.ctypes.data for array in (row_ptr, row_ptr[1:], cols)]
    return Matrix(None, *at, *shape, len(cols), *block, 2)


BLOCKS = [(1, 1), (2, 1), (4, 1), (5, 1), (8, 1), (16, 1), (32, 32), (48, 1), (3, 5), (64, 2)]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_bits_are_those_of_the_reference(library: ctypes.CDLL, block: tuple[int, int]) -> None:
    rows, columns = 131, 203
    weight, parts = random_weight(rows, columns, block)
    values, _, _, scale, bias = parts
    index = matrix(parts, (rows, columns), block)
    rng = np.random.default_rng(0)
    for m in (1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 63, 64, 65, 130):
        x = rng.standard_normal((m, columns)).astype(np.float32)
        y = np.zeros((m, rows), np.float32)
        views = [View(a.ctypes.data, m, n, n, 1, 0) for a, n in ((x, columns), (y, rows))]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (values, scale, bias)]
        library.product(byref(index), *pointers, *map(byref, views))
        plain = spmm_int8(*map(torch.from_numpy, (x, weight, scale, bias)))
        assert np.array_equal(y, plain.numpy()), f"{block} {m}"


@pytest.mark.parametrize("block", BLOCKS)
def test_the_bits_of_convolutions(library: ctypes.CDLL, block: tuple[int, int]) -> None:
    for kernel, stride, pad, size, batch in [(3, 1, 1, 11, 2), (3, 2, 0, 18, 1), (1, 1, 0, 9, 2)]:
        rows, channels = 70, 27 // kernel**2 * 3
        weight, parts = random_weight(rows, channels * kernel**2, block)
        values, _, _, scale, bias = parts
        index = matrix(parts, (rows, channels * kernel**2), block)
        out = (size + 2 * pad - kernel) // stride + 1
        x = np.random.default_rng(0).standard_normal((batch, channels, size, size)).astype(np.float32)
        y = np.zeros((batch, rows, out, out), np.float32)
        triples = [(1, n, n) for n in (size, out, kernel, stride)] + [(0, pad, pad), (1, 1, 1)]
        conv = Conv(batch, channels, *((ctypes.c_int64 * 3)(*three) for three in triples), 1, 0)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (values, scale, bias)]
        by_position = kernel == 1
        ends = [ctypes.c_void_p(a.ctypes.data) for a in (x, y)]
        library.convolution(byref(index), *pointers, byref(conv), int(by_position), *ends)
        images, filters = torch.from_numpy(x), torch.from_numpy(weight.reshape(rows, channels, kernel, kernel))
        factor, added = torch.from_numpy(scale), torch.from_numpy(bias)
        plain = conv_int8(images, filters, factor, added, [stride] * 2, [pad] * 4, [1, 1], 1)
        if by_position:
            pixels = images.movedim(1, -1).reshape(-1, channels)
            flat = spmm_int8(pixels, filters.flatten(1), factor, added)
            plain = flat.reshape(batch, out, out, rows).movedim(-1, 1)
        assert np.array_equal(y, plain.numpy()), f"{block} {kernel} {stride}"
