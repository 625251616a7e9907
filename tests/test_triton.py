"""The CUDA kernels in Triton's interpreter, on the CPU: the same arithmetic, mask by mask, as on a GPU.

That they compile for a GPU is tested too. What they do there is shown by tests/test_cuda.py and tools/gpu.sh.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from test_native import check, check_training, sets, within
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from topkast.runtime import choose, layout, planner
from topkast.runtime import triton as package
from topkast.runtime.kernels import KERNELS, candidates
from topkast.runtime.layout import Geometry, Index, index_masks
from topkast.runtime.native.products import ACTIVATIONS
from topkast.runtime.reference import REFERENCE, activation
from topkast.runtime.triton import configs, products, single, transient
from topkast.runtime.triton import sets as triton_sets

pytestmark = [
    pytest.mark.skipif(not package.available(), reason="Triton is not installed"),
    pytest.mark.skipif(not package.interpreted(), reason="there is a GPU: tests/test_cuda.py runs the kernels on it"),
    # Of a float32 that overflows numpy warns, a GPU does not: what comes of it is compared.
    pytest.mark.filterwarnings("ignore:overflow encountered in:RuntimeWarning"),
]
SQUARE = [(16, 16), (32, 32), (64, 64), (128, 128)]
BLOCKS = [*SQUARE, (48, 16), (16, 80), (32, 128), (112, 32)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(53, 41), (41, 53), (1, 300), (300, 1)], ids=str)
def test_single_weights(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Sizes of tiles, all strides, both widths of columns, empty and full rows, unused slots, hardly any weights."""
    geometry = Geometry(shape, (1, 0) if shape == (41, 53) else (0, 1), 1, (1, 1))
    for m, wide, how, bias, share in [
        (1, False, "plain", True, 0.3), (37, True, "cut", False, 0.02), (130, False, "transposed", True, 0.1)
    ]:  # fmt: skip
        check(m, geometry, sets(geometry, share, 2 * share, 2, wide), dtype, how, bias, "csr")


@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    st.integers(0, 70), st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3),
    st.sampled_from(["plain", "transposed", "cut"]), st.sampled_from(DTYPES), st.booleans(),
)  # fmt: skip
def test_fuzz_of_single_weights(m, rows, cols, share_a, share_b, spare, how, dtype, bias):
    torch.manual_seed(m * rows + cols)
    geometry = Geometry((rows, cols), (0, 1), 1, (1, 1))
    index = sets(geometry, min(share_a, share_b), max(share_a, share_b), spare)
    check(m, geometry, index, dtype, how, bias, "csr")


def test_single_weights_are_tried_where_few_are_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A product reads A, the weight gradient B: where that is over a hundredth of the weight nothing is measured."""
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    weighed: list[tuple[str, list[str]]] = []

    def measured(problem: planner.Problem, names: list[str]) -> dict[str, float]:
        weighed.append((problem.product, names))
        return dict.fromkeys(names, 2.0) | {"csr": 1.0}

    monkeypatch.setattr(planner, "measure", measured)
    geometry, layouts = Geometry((1000, 64), (0, 1), 1, (1, 1)), (((8, 64), (64, 1)),)

    def chosen(product: str, n_fwd: int, n_bwd: int) -> str:
        dtype, device = torch.bfloat16, torch.device("cuda")
        return planner.choose(planner.Problem(product, layouts, dtype, geometry, n_fwd, n_bwd, 1, device))

    assert chosen("spmm", 640, 1280) == "csr" and chosen("sddmm", 640, 1280) == "transient"
    assert chosen("spmm_t", 641, 1280) == "transient" and chosen("sddmm", 320, 640) == "csr"
    assert weighed == [("spmm", ["csr", "transient"]), ("sddmm", ["csr", "transient"])]
    monkeypatch.setenv("TOPKAST_KERNEL", "first")
    assert chosen("spmm", 640, 1280) == "csr" and chosen("spmm", 6400, 12800) == "transient"
    monkeypatch.setenv("TOPKAST_KERNEL", "csr")
    assert chosen("spmm", 6400, 12800) == "csr"


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


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("made_by, side", [(products, 16), (single, 1)], ids=["blocks", "single"])
def test_the_transposed_index(made_by: Any, side: int, parts: int) -> None:
    """Lists A by block columns, rows ascending; of each part on its own."""
    geometry = Geometry((15 * side, 11 * side), (0, 1), 1, (side, side))
    index = sets(geometry, 0.3, 0.6, 2)
    begins, ends, slot_of, row_of = made_by.transpose(index, geometry, parts)
    fwd, columns, rows = index_masks(index, geometry)[0].view(parts, -1, 11), geometry.grid[1], 15 // parts
    for part, column in itertools.product(range(parts), range(columns)):
        begin, end = int(begins[part * columns + column]), int(ends[part * columns + column])
        found = row_of[begin:end].long()
        assert found.equal(fwd[part, :, column].nonzero()[:, 0])
        slots = slot_of[begin:end].long()
        assert (index.cols.int()[slots] == column).all()
        assert (index.row_ptr[part * rows + found] <= slots).all() and (
            slots < index.row_fwd[part * rows + found]
        ).all()


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


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.integers(1, 6000), st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 3), st.data())
def test_selection_is_exact(n: int, distinct: int, rows: int, parts: int, data: st.DataObject) -> None:
    """Equal to the plain one, ties, zeros, infinities, NaN and several programs included; the index of the sets too."""
    torch.manual_seed(n)
    pool = torch.tensor([0.0, 1.0, torch.nan, torch.inf, 1e-42, 1.0000001])[:distinct]
    score = torch.where(torch.rand(rows, n) < 0.5, pool[torch.randint(distinct, (rows, n))], torch.randn(rows, n).abs())
    a, b = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
    known = choose.scores(score.view(-1, 1)).view(rows, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_sets, "PARTS", parts)
        fwd, bwd = triton_sets.largest(score, a), triton_sets.largest(score, b)
    assert fwd.equal(choose.largest(known, a)) and bwd.equal(choose.largest(known, b))
    for mine, plain in zip(
        triton_sets.build_index(fwd, bwd, rows * b + 2), layout.build_index(fwd, bwd, rows * b + 2), strict=True
    ):
        assert mine.dtype == plain.dtype and mine.equal(plain)


def test_index_of_many_columns() -> None:
    """More than 65,536 columns of blocks are stored as int32."""
    bwd = torch.rand(1, 2**16 + 5) < 0.5
    fwd, slots = bwd & (torch.rand(bwd.shape) < 0.5), int(bwd.sum())
    mine, plain = triton_sets.build_index(fwd, bwd, slots), layout.build_index(fwd, bwd, slots)
    assert mine.cols.dtype == torch.int32 and all(a.equal(b) for a, b in zip(mine, plain, strict=True))


@pytest.mark.parametrize("perm", [(0, 1, 2, 3), (1, 0, 2, 3)])
@pytest.mark.parametrize("block", [(1, 1), (4, 3), (16, 16)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_scatter_and_gather_are_bitwise(perm: tuple[int, ...], block: tuple[int, int], dtype: torch.dtype) -> None:
    geometry = Geometry((6, 5, 3, 3), perm, 1, block)
    index = sets(geometry, 0.3, 0.6, 2)
    values = torch.randn(index.cols.numel() * geometry.unit).to(dtype)
    grad = torch.randn(3, 3, 5, 6).permute(3, 2, 0, 1).to(dtype)
    assert transient.weight(values, index, geometry).equal(REFERENCE.weight(values, index, geometry))
    assert transient.weight_grad(grad, index, geometry).equal(REFERENCE.weight_grad(grad, index, geometry))


class Products(TorchDispatchMode):
    """Notes how many rows every product of matrices has."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.rows.append(found.shape[0])
        return found


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transient_products(block: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient, "CHUNK", 16)
    geometry = Geometry((53, 41), (0, 1), 1, block)
    with Products() as seen:
        transient.TRANSIENT.sddmm(torch.randn(7, 53), torch.randn(7, 41), sets(geometry, 0.2, 0.5), geometry)
    assert seen.rows == [16, 16, 16, 5]
    check(9, geometry, sets(geometry, 0.2, 0.5, 3), dtype, "plain", True, "transient")


def on_cuda(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, blocks, odd = (Geometry((256, 256), (0, 1), 1, block) for block in [(1, 1), (32, 64), (32, 24)])
    x = on_cuda(4, 256)
    assert candidates("spmm", x, blocks) == ["triton", "transient", "reference"]
    assert candidates("sddmm", x, unit) == ["csr", "transient", "reference"]
    for geometry in (odd, Geometry((256, 256), (0, 1), 1, (256, 16))):
        assert candidates("sddmm", x, geometry) == ["transient", "reference"]
    assert candidates("conv", x, unit) == candidates("conv", x, blocks) == ["transient", "reference"]
    for geometry in (blocks, unit):
        assert candidates("spmm", on_cuda(4, 256, dtype=torch.float64), geometry) == ["transient", "reference"]
    assert candidates("spmm", on_cuda(3, 4, 64), Geometry((3, 24, 64), (0, 1, 2), 2, (16, 16)))[0] == "transient"
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    for geometry in (blocks, unit):
        assert not set(package.NAMES) & set(candidates("spmm", torch.ones(4, 256), geometry))
    monkeypatch.setenv("TOPKAST_KERNEL", "triton")
    assert candidates("spmm", torch.ones(4, 256), blocks)[0] == "triton"


def test_the_planner_weighs_them_on_their_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    calls: list[tuple[torch.device, list[str]]] = []

    def measured(problem: planner.Problem, names: list[str]) -> dict[str, float]:
        calls.append((problem.device, names))
        return dict.fromkeys(names, 2.0) | {"transient": 1.0}

    monkeypatch.setattr(planner, "measure", measured)
    device, geometry = torch.device("cuda"), Geometry((256, 64), (0, 1), 1, (16, 16))
    layouts = (((8, 64), (64, 1)),)
    problem = planner.Problem("spmm", layouts, torch.bfloat16, geometry, 8, 16, 1, device)
    assert planner.choose(problem) == "transient" and calls == [(device, ["triton", "transient"])]
    (entry,) = planner.measured(geometry, 8, 16)
    assert entry["seconds"] == {"triton": 2.0, "transient": 1.0}
    on_cpu = planner.Problem("spmm", layouts, torch.bfloat16, geometry, 8, 16, 1)
    assert problem.key != on_cpu.key


@pytest.mark.parametrize("name, kernel, block", [
    ("mlp", "triton", (16, 16)), ("experts", "transient", (1, 1)),
    ("cnn", "transient", (4, 1)), ("hf_conv1d", "triton", (16, 16)), ("mlp", "csr", (1, 1)),
])  # fmt: skip
def test_training_takes_the_kernels(
    name: str, kernel: str, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wiring, sets and index of the refreshes included: as on plain dense products, which equal the oracle."""
    check_training(name, kernel, "reference", 0.7, 0.4, monkeypatch, block=block)


@pytest.mark.parametrize("run, side", [(products, 16), (single, 1)], ids=["blocks", "single"])
def test_an_in_place_refresh_reaches_the_input_gradient(run: Any, side: int) -> None:
    """The transposed index is made in the product: new sets in the same tensors need nothing renewed."""
    geometry = Geometry((5 * side, 6 * side), (0, 1), 1, (side, side))
    index, other = sets(geometry, 0.4, 0.4), sets(geometry, 0.4, 0.4)
    slots = max(index.cols.numel(), other.cols.numel())
    index, other = (
        Index(*i[:2], torch.nn.functional.pad(i.cols.int(), (0, slots - i.cols.numel()))) for i in (index, other)
    )
    values, dy = torch.randn(slots * geometry.unit), torch.randn(5, geometry.rows)
    run.spmm_t(dy, values, index, geometry)
    for mine, new in zip(index, other, strict=True):
        mine.copy_(new)
    torch.testing.assert_close(run.spmm_t(dy, values, index, geometry), REFERENCE.spmm_t(dy, values, other, geometry))


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


def test_they_compile_for_a_gpu(tmp_path: Path) -> None:
    """For Hopper, without one: within its shared memory, on its tensor cores, with pipelined copies of 16 bytes."""
    script = Path(__file__).with_name("ahead_of_time.py")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script, "90"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name.split()[0] for name in found} >= {
        *configs.PRODUCTS, "transpose_kernel", "mask_kernel", "single_spmm", "single_spmm_t", "single_sddmm"
    }  # fmt: skip
    for name, facts in found.items():
        assert facts["shared"] <= 227 * 1024, name
        if name.split()[0] in configs.PRODUCTS:
            assert facts["tensor cores"] > 0 and facts["wide copies"] > 0, f"{name}: {facts}"
            assert facts["shared"] >= 2 * facts["step"], f"{name}: while one step is summed the next must be on its way"


def test_the_gpu_script_dry(tmp_path: Path) -> None:
    """Every part of tools/gpu.sh, at toy sizes."""
    script = Path(__file__).parent.parent / "tools" / "gpu.sh"
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([script, "--dry", "--out", tmp_path], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    parts = json.loads((tmp_path / "gpu-dry.json").read_text())["parts"]
    assert set(parts) == {"hardware", "correct", "products", "single", "steps", "decode", "large", "headline"}
    assert all(part["ended"] == "complete" and part["rows"] for part in parts.values())
    _, blocks, single = parts["steps"]["rows"]
    assert set(blocks["kernels"]["weight gradient"]) == {"triton"}
    assert set(single["kernels"]["forward"]) == {"transient"}
    assert blocks["parameters, gradient and optimizer / dense"] < 0.7  # the embedding stays dense
    large, background = parts["large"]["rows"]
    assert large["losses"][-1] < large["losses"][0]
    assert background["in the background"] and background["a step that asks and applies / a plain one"] > 0
    assert {row["dtype"] for row in parts["single"]["rows"]} == {"torch.bfloat16", "torch.float32"}
    assert all(set(row["step"]) == {"csr", "transient"} for row in parts["single"]["rows"])
    assert all("triton, GELU apart" in row["ratio"] for row in parts["decode"]["rows"])


def test_the_parts_of_the_gpu_script_have_their_time() -> None:
    """Each has a limit, and all together stop before nine minutes, the headline's own run too."""
    import gpu

    assert gpu.TOTAL < 540 and all(0 < limit < 600 for _, _, limit, _ in gpu.PARTS.values())
    assert sum(limit for _, _, limit, unasked in gpu.PARTS.values() if unasked) < 1.2 * gpu.TOTAL


def test_a_part_that_fails_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu

    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu, "PARTS", {
        "fails": ("math", "sqrt", 20, True), "hangs": ("test_triton_parts", "hang", 2, True),
        "works": ("test_triton_parts", "work", 20, True),
    })  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "test_triton_parts.py").write_text(
        "import time\n"
        "def hang(dry, add):\n    add({'first': 1})\n    time.sleep(60)\n"
        "def work(dry, add):\n    add({'n': 1})\n"
    )
    assert gpu.main(["--out", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["fails"]["ended"].startswith("failed") and "TypeError" in parts["fails"]["rows"][0]["error"]
    assert parts["hangs"]["ended"] == "stopped after 2 s" and parts["hangs"]["rows"] == [{"first": 1}]
    assert parts["works"] | {"seconds": 0} == {"ended": "complete", "seconds": 0, "rows": [{"n": 1}]}


def test_the_tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures what it is told to, keeps the fastest that runs, and leaves the rest of the table as it is."""
    import tune_triton

    fast, slow, broken = (configs.Config(tile, 16, 1, 4, 2) for tile in (32, 16, 64))
    monkeypatch.setattr(tune_triton, "M", {"decode": 8})
    monkeypatch.setattr(tune_triton, "candidates", lambda *_: iter([fast, slow, broken]))

    def timed(runs, where, repeats):
        runs[0]()
        chosen = products.find()
        if chosen == broken:
            raise RuntimeError("out of shared memory")
        return [[{fast: 1.0, slow: 2.0}.get(chosen, 3.0)]]

    monkeypatch.setattr(tune_triton, "seconds", timed)
    before = json.loads(configs.PATH.read_text())
    path = tmp_path / "configs.json"
    args = argparse.Namespace(products=["sddmm"], kinds=["half"], sides=[16], rows=["decode"], size=48, repeats=1)
    args.table = path
    table = json.loads(configs.PATH.read_text())
    tune_triton.fill(table, args, torch.device("cpu"), "sm_77")
    found = json.loads(path.read_text())
    assert found.pop("sm_77")["sddmm"]["half"]["16"]["decode"] == list(fast)
    assert found == before and tune_triton.dump(before) == configs.PATH.read_text()
