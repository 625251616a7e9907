"""The CUDA kernels for blocks in Triton's interpreter, on the CPU: the same arithmetic, mask by mask, as on a GPU.

That they compile for a GPU is tested too. What they do there is shown by tests/runtime/triton/test_cuda.py and
tools/gpu/gpu.sh.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from topkast.runtime import layout
from topkast.runtime.kernels.candidates import KERNELS
from topkast.runtime.layout import Geometry
from topkast.runtime.native.products import ACTIVATIONS
from topkast.runtime.reference.products import REFERENCE, activation
from topkast.runtime.triton import configs, products, transient
from topkast.tests.support.interpreted import DTYPES, INTERPRETED
from topkast.tests.support.truth.product_layouts import check, sets, within

pytestmark = INTERPRETED
SQUARE = [(16, 16), (32, 32), (64, 64), (128, 128)]
BLOCKS = [*SQUARE, (48, 16), (16, 80), (32, 128), (112, 32)]


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block(block: tuple[int, int], dtype: torch.dtype) -> None:
    """Sizes that are a multiple of nothing, every class of rows, all strides, both widths of columns, empty and full
    rows, unused slots."""
    for m, wide, how, bias in [(1, False, "plain", True), (37, True, "cut", False), (261, False, "transposed", True)]:
        geometry = Geometry((2 * block[0] - 5, 2 * block[1] + 3), (0, 1), 1, block)
        check(m, geometry, sets(geometry, 0.3, 0.6, 2, wide), dtype, how, bias, "triton")


def test_blocks_that_divide_the_matrix() -> None:
    """The variants without masks."""
    for block, m in itertools.product([(16, 16), (64, 64), (128, 128)], [16, 128]):
        geometry = Geometry((2 * block[0], 3 * block[1]), (0, 1), 1, block)
        check(m, geometry, sets(geometry, 0.5, 0.8), torch.float32, "plain", True, "triton")


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.integers(0, 70), st.integers(1, 90), st.integers(1, 90), st.sampled_from(BLOCKS[:5]),
    st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.booleans(), st.booleans(),
    st.sampled_from(["plain", "transposed", "cut"]), st.sampled_from(DTYPES), st.booleans(),
)  # fmt: skip
def test_fuzz(m, rows, cols, block, share_a, share_b, spare, wide, swap, how, dtype, bias):
    torch.manual_seed(m * rows + cols)
    shape, perm = ((cols, rows), (1, 0)) if swap else ((rows, cols), (0, 1))
    geometry = Geometry(shape, perm, 1, block)
    index = sets(geometry, min(share_a, share_b), max(share_a, share_b), spare, wide)
    check(m, geometry, index, dtype, how, bias, "triton")


@pytest.mark.long
@pytest.mark.parametrize("kernel, block", [("triton", (16, 16)), ("csr", (1, 1))])
@pytest.mark.parametrize("act", ["", *ACTIVATIONS[1:]])
@pytest.mark.parametrize("bias", [None, (40,), (1, 40), (21, 40)], ids=str)
def test_epilogue(act: str, bias: tuple[int, ...] | None, kernel: str, block: tuple[int, int]) -> None:
    geometry = Geometry((40, 50), (0, 1), 1, block)
    index = sets(geometry, 0.4, 0.7)
    for dtype in DTYPES:
        values, x = torch.randn(index.cols.numel() * geometry.unit).to(dtype), torch.randn(21, 50).to(dtype)
        b = None if bias is None else torch.randn(bias).to(dtype)
        ours = KERNELS[kernel].products.spmm(x, values, index, geometry, b, act=act)
        plain = activation(act, REFERENCE.spmm(x, values, index, geometry, None) + (0 if b is None else b))
        exact = REFERENCE.spmm(x.double(), values.double(), index, geometry, None)
        within(ours, [plain], activation(act, exact + (0 if b is None else b.double())), f"{act} {bias} {dtype}")


@pytest.mark.parametrize("kernel", ["triton", "csr"])
@pytest.mark.parametrize("act", ACTIVATIONS[1:])
def test_where_functions_are_difficult(act: str, kernel: str) -> None:
    """Far out, near zero, and not a number: a diagonal weight passes its input on."""
    odd = [torch.inf, torch.nan] if kernel == "csr" else [2.0, 3.0]  # infinity times a block's zeros is NaN
    far = [0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 88.0, -88.0, 104.0, -104.0]
    points, diagonal = torch.tensor([*far, *odd, 1.0, -1.0, 0.5, -0.5]), torch.eye(16, dtype=torch.bool)
    geometry = Geometry((16, 16), (0, 1), 1, (16, 16) if kernel == "triton" else (1, 1))
    blocks = diagonal if kernel == "csr" else torch.ones(1, 1, dtype=torch.bool)
    index = layout.build_index(blocks, blocks, int(blocks.sum()))
    values = torch.ones(16) if kernel == "csr" else torch.eye(16).view(-1)
    x = torch.where(diagonal, points, 0.0)
    found = KERNELS[kernel].products.spmm(x, values, index, geometry, None, act=act).diagonal()
    expected = activation(act, points.double()).float()
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    "kernel, block", [("triton", (16, 32)), ("csr", (1, 1)), ("transient", (4, 1)), ("transient", (5, 3))]
)
def test_stacked_weights(kernel: str, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Batched experts: one weight for each, stacked in the rows."""
    run = KERNELS[kernel].products
    monkeypatch.setattr(transient, "CHUNK", 8)
    geometry = Geometry((3, 32, 70), (0, 1, 2), 2, block)
    index = sets(geometry, 0.4, 0.7, 3)
    values, x, dy = torch.randn(index.cols.numel() * geometry.unit), torch.randn(3, 9, 70), torch.randn(3, 9, 32)
    bias = torch.randn(3, 1, 32)
    for ours, plain in (
        (run.spmm(x, values, index, geometry, bias), REFERENCE.spmm(x, values, index, geometry, bias)),
        (run.spmm_t(dy, values, index, geometry), REFERENCE.spmm_t(dy, values, index, geometry)),
        (run.sddmm(dy, x, index, geometry), REFERENCE.sddmm(dy, x, index, geometry)),
    ):
        torch.testing.assert_close(ours, plain)


def test_float32_follows_torchs_setting() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for setting, wanted in (("highest", "ieee"), ("high", "tf32"), ("highest", "ieee")):
            torch.set_float32_matmul_precision(setting)
            assert products.arithmetic(torch.ones(1))["PRECISION"] == wanted
            assert products.arithmetic(torch.ones(1).bfloat16())["PRECISION"] == "ieee"
        torch.backends.cuda.matmul.allow_tf32 = True
        assert products.arithmetic(torch.ones(1))["PRECISION"] == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_table_of_configurations() -> None:
    """Every product, kind, side and class is there, for every architecture; all is a power of two where it must be."""
    assert "any" in configs.table() and len(configs.table()) > 1
    for found in configs.table().values():
        assert set(found) == {"measured", *configs.PRODUCTS}
        for product in configs.PRODUCTS:
            assert set(found[product]) == set(configs.KINDS)
            for kind in configs.KINDS:
                assert set(found[product][kind]) == {str(side) for side in configs.SIDES}
                for classes in found[product][kind].values():
                    assert set(classes) == set(configs.ROWS)
                    for listed in classes.values():
                        chosen = configs.Config(*listed)
                        assert all(n & (n - 1) == 0 and n >= 16 for n in (chosen.tile, chosen.depth))
                        assert chosen.warps in (1, 2, 4, 8, 16) and chosen.stages > 0 and chosen.group > 0


@pytest.mark.long
def test_they_compile_for_a_gpu(tmp_path: Path) -> None:
    """For Hopper, without one: within its shared memory, on its tensor cores, with pipelined copies of 16 bytes."""
    module = "topkast.tools.gpu.compiled"
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", module, "90"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name.split()[0] for name in found} >= {
        *configs.PRODUCTS, "transpose_kernel", "mask_kernel", "single_spmm", "single_spmm_t", "single_sddmm"
    }  # fmt: skip
    for name, facts in found.items():
        assert facts["shared"] <= 227 * 1024, name
        if name.split()[0] in configs.PRODUCTS:
            assert facts["wgmma"] or (facts["mma"] and name == "sddmm 16 bf16 large"), f"{name}: {facts}"
            assert facts["wide copies"] > 0, f"{name}: {facts}"
            # The exact GELU on 256 x 128 sums needs more registers than there are; nothing else does.
            assert (facts["stack"] > 0) == (name == "spmm 128 bf16 large"), f"{name}: {facts}"
            assert facts["loop"]["operations"] and facts["loop"]["bytes"] == facts["step"], f"{name}: {facts}"
            assert facts["shared"] >= 2 * facts["step"], f"{name}: while one step is summed the next must be on its way"
